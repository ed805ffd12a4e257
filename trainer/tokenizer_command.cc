#include "trainer/tokenizer_command.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <thread>
#include <vector>

#include "data/bpe_trainer.h"
#include "data/text_source.h"
#include "data/utf8.h"
#include "trainer/config_value.h"
#include "trainer/named_tokenizer.h"
#include "trainer/stage_progress.h"

namespace narrowgauge::trainer {
namespace {

using nlohmann::json;

struct TrainedTokenizer {
  std::string json;
  size_t num_documents = 0;
  size_t num_bytes = 0;
};

TrainedTokenizer train(const TokenizerTrainOptions& options, data::BpeTrainerOptions training) {
  StageProgress progress;
  training.progress = [&](double fraction, std::string_view stage) {
    progress.update(stage, fraction);
  };
  const std::vector<std::string> documents = data::read_documents(
      options.sources, {options.text_field, options.replace_invalid_utf8},
      data::kEnoughTrainingBytes, [&](double done) { progress.update("reading text", done); });
  TrainedTokenizer trained;
  trained.num_documents = documents.size();
  for (const std::string& document : documents) {
    trained.num_bytes += document.size();
  }
  trained.json =
      data::train_bpe(std::vector<std::string_view>(documents.begin(), documents.end()), training);
  return trained;
}

// Whole or not at all: written beside its place, then renamed.
void write_file(const std::filesystem::path& path, const std::string& content) {
  if (path.has_parent_path()) {
    std::filesystem::create_directories(path.parent_path());
  }
  const std::filesystem::path partial = path.string() + ".partial";
  std::ofstream file(partial, std::ios::binary);
  file << content;
  file.close();
  if (!file) {
    throw std::runtime_error("expected to write " + partial.string() +
                             ", got an error; check space and permissions");
  }
  std::filesystem::rename(partial, path);
}

data::BpeTrainerOptions training_options(const TokenizerTrainOptions& options) {
  data::BpeTrainerOptions training;
  training.vocab_size = options.vocab_size;
  training.special_tokens = options.special_tokens;
  training.pre_tokenizer = options.pre_tokenizer;
  training.num_threads = static_cast<int>(
      options.num_threads > 0 ? options.num_threads : std::thread::hardware_concurrency());
  try {
    data::check_bpe_options(training);
  } catch (const std::invalid_argument& error) {
    throw UsageError(error.what());
  }
  return training;
}

// Writes convert(line) for each line of standard input; errors get the line's number.
template <typename Convert>
int convert_lines(const Convert& convert) {
  std::ios::sync_with_stdio(false);
  std::string line;
  for (int64_t number = 1; std::getline(std::cin, line); ++number) {
    std::string out;
    try {
      out = convert(line);
    } catch (const std::exception& error) {
      std::cout.flush();
      throw std::runtime_error("line " + std::to_string(number) + ": " + error.what());
    }
    std::cout << out << '\n';
    if (!std::cout) {
      break;  // main reports it, as for every subcommand
    }
  }
  return kExitDone;
}

std::string format_ids(const std::vector<int32_t>& ids) {
  char digits[16];
  std::string out = "[";
  for (size_t i = 0; i < ids.size(); ++i) {
    out += i == 0 ? "" : ", ";
    out.append(digits, std::to_chars(digits, digits + sizeof(digits), ids[i]).ptr);
  }
  return out + ']';
}

std::string parse_text(const std::string& line) {
  const json text = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!text.is_string()) {
    throw std::runtime_error("expected a JSON string such as \"text\", got " + in_quotes(line));
  }
  return text.get<std::string>();
}

std::vector<int32_t> parse_ids(const std::string& line, int64_t vocab_size) {
  const json list = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!list.is_array()) {
    throw std::runtime_error("expected a JSON array of ids such as [1, 2], got " + in_quotes(line));
  }
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const json& id : list) {
    // What is negative is an integer, but not an unsigned one.
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(vocab_size)) {
      throw std::runtime_error("expected a token id in [0, " + std::to_string(vocab_size) +
                               "), got " + id.dump());
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

}  // namespace

int train_tokenizer(const TokenizerTrainOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const data::BpeTrainerOptions training = training_options(options);
  const TrainedTokenizer trained = train(options, training);
  const std::filesystem::path output = options.output;
  write_file(output, trained.json);
  if (output.filename() == "tokenizer.json") {
    write_file(output.parent_path() / "tokenizer_config.json",
               data::tokenizer_config_json(training));
  }
  const int64_t size = data::load_tokenizer({"huggingface", output.string()})->vocab_size();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::fprintf(stderr, "wrote %s: %lld entries%s, from %zu documents, %.1f MB%s, %.1f s\n",
               output.c_str(), static_cast<long long>(size),
               size < training.vocab_size ? " (the text has no more pairs)" : "",
               trained.num_documents, static_cast<double>(trained.num_bytes) / 1e6,
               trained.num_bytes >= data::kEnoughTrainingBytes ? " (the rest left out)" : "",
               seconds);
  return kExitDone;
}

int encode_lines(const TokenizerEncodeOptions& options) {
  const auto tokenizer = open_named_tokenizer(options.tokenizer, options.kind);
  return convert_lines([&](const std::string& line) {
    std::string text = options.json ? parse_text(line) : line;
    if (options.replace_invalid_utf8) {
      text = data::replace_invalid_utf8(text);
    }
    try {
      return format_ids(options.document ? tokenizer->encode_document(text)
                                         : tokenizer->encode(text));
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error(std::string(error.what()) + " (--invalid-utf8 replace)");
    }
  });
}

int decode_lines(const TokenizerDecodeOptions& options) {
  const auto tokenizer = open_named_tokenizer(options.tokenizer, options.kind);
  return convert_lines([&](const std::string& line) {
    const std::string text = tokenizer->decode(parse_ids(line, tokenizer->vocab_size()));
    return options.json ? json(text).dump(-1, ' ', false, json::error_handler_t::replace) : text;
  });
}

}  // namespace narrowgauge::trainer
