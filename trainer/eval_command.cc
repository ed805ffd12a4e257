#include "trainer/eval_command.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "trainer/device.h"
#include "trainer/eval_task.h"
#include "trainer/load_model.h"
#include "trainer/log_likelihood.h"
#include "trainer/model_comparison.h"
#include "trainer/perplexity.h"
#include "trainer/scored_text.h"
#include "trainer/stage_progress.h"
#include "trainer/task_score.h"

namespace narrowgauge::trainer {
namespace {

constexpr int64_t kLongestDefaultWindow = 2048;
constexpr int64_t kTokensPerBatch = 4096;

const data::Tokenizer& tokenizer_of(const LoadedModel& loaded, const EvalOptions& options) {
  if (!loaded.tokenizer) {
    throw UsageError(options.model + " has no tokenizer; name one with --tokenizer");
  }
  return *loaded.tokenizer;
}

nlohmann::ordered_json to_json(const std::optional<double>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json();
}

// One call of the command: what its tasks share.
struct Evaluation {
  const EvalOptions& options;
  const LoadedModel& loaded;
  int64_t seq_len;
  StageProgress progress;

  int64_t batch_size() const {
    const int64_t tokens = evaluation_batch_tokens(loaded.model->config());
    return std::max<int64_t>(1, std::min(tokens, kTokensPerBatch) / seq_len);
  }

  std::vector<ScoredDocument> documents() const {
    return read_scored_documents(options.data.at("perplexity"), loaded.tokenizer.get(),
                                 loaded.model->config().vocab_size);
  }
};

nlohmann::ordered_json run_perplexity(Evaluation& evaluation) {
  const Perplexity result = evaluate_perplexity(
      *evaluation.loaded.model, evaluation.documents(), evaluation.seq_len, evaluation.batch_size(),
      [&](double fraction) { evaluation.progress.update("perplexity", fraction); });
  return {{"task", "perplexity"},
          {"model", evaluation.options.model},
          {"seq_len", evaluation.seq_len},
          {"tokens", result.num_tokens},
          {"bytes", result.num_bytes},
          {"words", result.num_words},
          {"loss", result.loss()},
          {"perplexity_per_token", result.per_token()},
          {"perplexity_per_byte", to_json(result.per_byte())},
          {"perplexity_per_word", to_json(result.per_word())}};
}

nlohmann::ordered_json run_task(Evaluation& evaluation, const std::string& task) {
  const EvalOptions& options = evaluation.options;
  const auto items = read_task(task, options.data.at(task).front(), options.limit);
  std::vector<LikelihoodRequest> requests;
  for (const TaskItem& item : items) {
    for (const std::string& continuation : item.continuations) {
      requests.push_back(
          encode_pair(tokenizer_of(evaluation.loaded, options), item.context, continuation));
    }
  }
  nn::Transformer& model = *evaluation.loaded.model;
  const auto likelihoods =
      log_likelihoods(model, requests, evaluation_batch_tokens(model.config()),
                      [&](double fraction) { evaluation.progress.update(task, fraction); });
  const TaskScore score = score_task(items, likelihoods);
  nlohmann::ordered_json object = {{"task", task},
                                   {"model", options.model},
                                   {"items", score.num_items},
                                   {"acc", score.acc.value},
                                   {"acc_stderr", score.acc.standard_error}};
  if (score.acc_norm) {
    object["acc_norm"] = score.acc_norm->value;
    object["acc_norm_stderr"] = score.acc_norm->standard_error;
  }
  if (score.perplexity) {
    object["perplexity"] = *score.perplexity;
  }
  return object;
}

nlohmann::ordered_json run_comparison(Evaluation& evaluation) {
  const EvalOptions& options = evaluation.options;
  std::vector<std::string> names = {options.model};
  std::vector<std::shared_ptr<nn::Transformer>> models = {evaluation.loaded.model};
  for (const std::string& path : options.compare) {
    names.push_back(path);
    models.push_back(load_model(path, options.tokenizer, select_device(options.device)).model);
  }
  const ModelComparison result =
      compare_models(models, evaluation.documents(), evaluation.seq_len, evaluation.batch_size(),
                     [&](double fraction) { evaluation.progress.update("comparison", fraction); });
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (size_t i = 0; i < names.size(); ++i) {
    const ModelDivergence& model = result.models[i];
    rows.push_back({{"model", names[i]},
                    {"loss", model.loss},
                    {"perplexity", std::exp(model.loss)},
                    {"kl_mean", model.kl_mean},
                    {"kl_stderr", model.kl_standard_error},
                    {"kl_median", model.kl_median},
                    {"kl_p99", model.kl_p99},
                    {"kl_max", model.kl_max},
                    {"same_top1", model.same_top1}});
  }
  return {{"task", "comparison"},
          {"base", options.model},
          {"seq_len", evaluation.seq_len},
          {"tokens", result.num_tokens},
          {"models", rows}};
}

void print_result(const nlohmann::ordered_json& result) {
  if (result.at("task") == "comparison") {
    std::printf("%-32s %10s %12s %10s %10s %10s %10s\n", "model", "loss", "perplexity", "KL mean",
                "KL p99", "KL max", "same top1");
    for (const auto& row : result.at("models")) {
      const auto number = [&](const char* key) { return row.at(key).get<double>(); };
      std::printf("%-32s %10.6f %12.4f %10.6f %10.6f %10.6f %8.2f %%\n",
                  row.at("model").get<std::string>().c_str(), number("loss"), number("perplexity"),
                  number("kl_mean"), number("kl_p99"), number("kl_max"), 100 * number("same_top1"));
    }
    return;
  }
  for (const auto& [key, value] : result.items()) {
    if (value.is_string()) {
      std::printf("%-20s %s\n", key.c_str(), value.get<std::string>().c_str());
    } else if (value.is_number_integer()) {
      std::printf("%-20s %ld\n", key.c_str(), value.get<int64_t>());
    } else if (value.is_number()) {
      std::printf("%-20s %.6f\n", key.c_str(), value.get<double>());
    }
  }
}

}  // namespace

int eval_command(const EvalOptions& options) {
  const LoadedModel loaded =
      load_model(options.model, options.tokenizer, select_device(options.device));
  const int64_t max_seq_len = loaded.model->config().max_seq_len;
  const int64_t seq_len =
      options.seq_len > 0 ? options.seq_len : std::min(max_seq_len, kLongestDefaultWindow);
  if (seq_len > max_seq_len) {
    throw UsageError("--seq-len: expected at most the model's " + std::to_string(max_seq_len) +
                     ", got " + std::to_string(seq_len));
  }
  Evaluation evaluation{options, loaded, seq_len, {}};
  std::vector<nlohmann::ordered_json> results;
  for (const std::string& task : options.tasks) {
    results.push_back(task == "perplexity" ? run_perplexity(evaluation)
                                           : run_task(evaluation, task));
  }
  if (!options.compare.empty()) {
    results.push_back(run_comparison(evaluation));
  }
  for (const auto& result : results) {
    if (options.json) {
      std::puts(result.dump().c_str());
    } else {
      print_result(result);
    }
  }
  return kExitDone;
}

}  // namespace narrowgauge::trainer
