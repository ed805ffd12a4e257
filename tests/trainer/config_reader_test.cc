#include "trainer/config_reader.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "trainer/config_writer.h"

namespace narrowgauge::trainer {
namespace {

// The smallest complete configuration, in four lines.
constexpr const char* kMinimal =
    "job: {run_dir: x}\n"
    "tokenizer: {kind: bytes}\n"
    "data: {train: [a.txt]}\n"
    "model: {dim: 64, num_heads: 4, num_layers: 2, ffn_dim: 128}\n";

TrainConfig read(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return read_config_text(text, "c.yaml", overrides);
}

// What the reader says, or "no error".
std::string error_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    read(text, overrides);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

struct Mistake {
  std::string yaml;
  std::string error;
};

TEST(ReadConfig, NamesThePlaceTheKeyAndTheRemedy) {
  const Mistake mistakes[] = {
      // Names
      {"modle: {dim: 3}", "c.yaml:1:1: unknown section modle; did you mean model?"},
      {"job: {}\nmodel: {dmi: 3}", "c.yaml:2:9: unknown key model.dmi; did you mean model.dim?"},
      {"model:\n  num_layer: 3\n",
       "c.yaml:2:3: unknown key model.num_layer; did you mean model.num_layers?"},
      {"job: {seq_len: 3}", "c.yaml:1:7: unknown key job.seq_len; did you mean training.seq_len?"},
      {"job: {xyzzy: 3}", "c.yaml:1:7: unknown key job.xyzzy; job has run_dir"},
      {"model: {dim:3}", "c.yaml:1:9: unknown key model.dim:3; YAML wants a blank after the colon"},
      {"data: {[a]: 3}", "c.yaml:1:8: expected a name, got a list or a map"},
      {"xyzzy: {}",
       "c.yaml:1:1: unknown section xyzzy; the sections are job, model, tokenizer, data, training, "
       "optimizer, lr_scheduler, float8, sparsity, qat, distillation, lora, parallelism, "
       "activation_checkpoint, comm, checkpoint, validation, generation, export, metrics, "
       "profiling"},
      // Names of other trainers
      {"metrics: {log_freq: 3}",
       "c.yaml:1:11: unknown key metrics.log_freq; did you mean metrics.log_interval?"},
      {"validation: {steps: 3}",
       "c.yaml:1:14: unknown key validation.steps; did you mean validation.max_batches?"},
      {"model: {hidden_size: 3}",
       "c.yaml:1:9: unknown key model.hidden_size; did you mean model.dim?"},
      {"job: {dump_folder: x}",
       "c.yaml:1:7: unknown key job.dump_folder; did you mean job.run_dir?"},
      {"checkpoint: {initial_load_path: x}",
       "c.yaml:1:14: unknown key checkpoint.initial_load_path; did you mean "
       "model.initial_load_path?"},
      // Duplicates
      {"model:\n  dim: 4\n  num_layers: 1\n  dim: 4\n",
       "c.yaml:4:3: duplicate key model.dim; it is set at line 2 already"},
      {"model: {dim: 4}\njob: {run_dir: x}\nmodel: {num_layers: 5}\n",
       "c.yaml:3:1: duplicate section model; it begins at line 1 already"},
      // Types
      {"training:\n  steps: 010\n",
       "c.yaml:2:10: training.steps: expected an integer in [1, 1000000000], got \"010\"; write it "
       "without leading zeros"},
      {"training:\n  steps: 1e3\n",
       "c.yaml:2:10: training.steps: expected an integer in [1, 1000000000], got \"1e3\"; write "
       "1000"},
      {"training: {steps: \"10\"}",
       "c.yaml:1:19: training.steps: expected an integer in [1, 1000000000], got \"10\"; remove "
       "the "
       "quotes"},
      {"training: {steps: many}",
       "c.yaml:1:19: training.steps: expected an integer in [1, 1000000000], got \"many\""},
      {"training:\n  steps:\n  seed: 3\n",
       "c.yaml:2:3: training.steps: expected an integer in [1, 1000000000], got nothing"},
      {"training: {steps: [1]}",
       "c.yaml:1:19: training.steps: expected an integer in [1, 1000000000], got a list"},
      {"training: {steps: {a: 1}}",
       "c.yaml:1:19: training.steps: expected an integer in [1, 1000000000], got a map"},
      {"training: {seed: 9223372036854775808}",
       "c.yaml:1:18: training.seed: expected an integer of at least 0, got "
       "\"9223372036854775808\""},
      {"export: {enable: yes}",
       "c.yaml:1:18: export.enable: expected true or false, got \"yes\"; write true"},
      {"export: {enable: 0}",
       "c.yaml:1:18: export.enable: expected true or false, got \"0\"; write false"},
      {"optimizer: {lr: .inf}",
       "c.yaml:1:17: optimizer.lr: expected a number above 0.0, got \".inf\""},
      {"job: {run_dir: ~}",
       "c.yaml:1:7: job.run_dir: expected text, got nothing; write \"\" for empty text"},
      {"job: {run_dir: [x]}", "c.yaml:1:16: job.run_dir: expected text, got a list"},
      {"job: {run_dir: \"a\\0b\"}",
       "c.yaml:1:16: job.run_dir: expected UTF-8 text without control characters, got "
       "\"a\\x00b\""},
      {"data: {train: x.txt}",
       "c.yaml:1:15: data.train: expected a list such as [a.txt, b.txt], got \"x.txt\"; write "
       "[x.txt]"},
      {"data: {train: [a, ~]}",
       "c.yaml:1:15: data.train: expected text in the list, got nothing; write \"\" for empty "
       "text"},
      // Ranges and choices
      {"training: {steps: 0}",
       "c.yaml:1:19: training.steps: expected an integer in [1, 1000000000], got \"0\""},
      {"optimizer: {lr: 0}", "c.yaml:1:17: optimizer.lr: expected a number above 0.0, got \"0\""},
      {"optimizer: {beta1: 1.0}",
       "c.yaml:1:20: optimizer.beta1: expected a number in [0.0, 1.0), got \"1.0\""},
      {"generation: {top_p: 0}",
       "c.yaml:1:21: generation.top_p: expected a number in (0.0, 1.0], got \"0\""},
      {"optimizer: {weight_decay: -1}",
       "c.yaml:1:27: optimizer.weight_decay: expected a number of at least 0.0, got \"-1\""},
      {"optimizer: {name: adamw}",
       "c.yaml:1:19: optimizer.name: expected one of AdamW, Adam, AdamW8bit, AdamW4bit, AdamWFp8, "
       "Muon, got \"adamw\"; did you mean AdamW?"},
      {"training: {device: gpu}",
       "c.yaml:1:20: training.device: expected one of auto, cpu, cuda, got \"gpu\"; did you mean "
       "cuda?"},
      {"activation_checkpoint: {mode: 2}",
       "c.yaml:1:31: activation_checkpoint.mode: expected one of none, full, selective, got \"2\""},
      {"activation_checkpoint: {selective_ac_option: 0}",
       "c.yaml:1:46: activation_checkpoint.selective_ac_option: expected op or an integer of at "
       "least 1, got \"0\""},
      {"activation_checkpoint: {selective_ac_option: ops}",
       "c.yaml:1:46: activation_checkpoint.selective_ac_option: expected op or an integer of at "
       "least 1, got \"ops\"; did you mean op?"},
      // Structure
      {"- a", "c.yaml:1:1: expected sections such as model: {dim: 384}, got a list"},
      {"hello", "c.yaml:1:1: expected sections such as model: {dim: 384}, got \"hello\""},
      {"model: 3", "c.yaml:1:8: model: expected keys such as {architecture: ...}, got \"3\""},
      {"model: [3]", "c.yaml:1:8: model: expected keys such as {architecture: ...}, got a list"},
      {"data: {train: [[a]]}",
       "c.yaml:1:16: expected no more than a list in a section, got deeper nesting"},
      {"job: {run_dir: x}\n---\njob: {run_dir: y}\n",
       "c.yaml:2:1: expected one document, got a second one; remove the line ---"},
      // What YAML has and a configuration has not
      {"model: &a {dim: 3}",
       "c.yaml:1:8: expected a value, got an anchor (&) or an alias (*); write the value out"},
      {"data: {train: [*.txt]}",
       "c.yaml:1:16: expected YAML, got an error: the referenced anchor is not defined; put text "
       "that begins with * in quotes"},
      {"training: {steps: !!int 3}",
       "c.yaml:1:19: expected a plain value, got the tag \"tag:yaml.org,2002:int\"; remove it"},
      {"job:\n\trun_dir: x\n", "c.yaml:2:9: expected YAML, got an error: illegal map value"},
      // Bytes
      {"job: {run_dir: \xFF}",
       "c.yaml:1:16: expected UTF-8 text without control characters, got byte 255"},
      {"a:\n \x04", "c.yaml:2:2: expected UTF-8 text without control characters, got byte 4"},
      {std::string(300000, '#'),
       "c.yaml: expected at most 262144 bytes, got more; is this a configuration?"},
      {"", "c.yaml: job.run_dir: expected a directory, got nothing; write run_dir: runs/NAME"},
  };
  for (const auto& [yaml, error] : mistakes) {
    EXPECT_EQ(error_of(yaml), error) << yaml.substr(0, 200);
  }
}

TEST(ReadConfig, OverridesFollowTheSameRules) {
  const Mistake mistakes[] = {
      {"trainig.steps=3",
       "override \"trainig.steps=3\": unknown key trainig.steps; did you mean training.steps?"},
      {"training.step=3",
       "override \"training.step=3\": unknown key training.step; did you mean training.steps?"},
      {"qqq.zzz=3",
       "override \"qqq.zzz=3\": unknown key qqq.zzz; the sections are job, model, tokenizer, data, "
       "training, optimizer, lr_scheduler, float8, sparsity, qat, distillation, lora, parallelism, "
       "activation_checkpoint, comm, checkpoint, validation, generation, export, metrics, "
       "profiling"},
      {"training.steps", "override \"training.steps\": expected section.key=value"},
      {"steps=3", "override \"steps=3\": expected section.key=value"},
      {"", "override \"\": expected section.key=value"},
      {"training.steps=",
       "override \"training.steps=\": training.steps: expected an integer in [1, 1000000000], got "
       "nothing"},
      {"training.steps=010",
       "override \"training.steps=010\": training.steps: expected an integer in [1, 1000000000], "
       "got \"010\"; write it without leading zeros"},
      {"export.enable=no",
       "override \"export.enable=no\": export.enable: expected true or false, got \"no\"; write "
       "false"},
      {"data.train=a.txt",
       "override \"data.train=a.txt\": data.train: expected a list such as [a.txt, b.txt], got "
       "\"a.txt\"; write [a.txt]"},
      {"data.train=[a",
       "override \"data.train=[a\":1:1: expected YAML, got an error: end of sequence flow not "
       "found"},
      {"job.run_dir=\xFF",
       "override \"job.run_dir=\xFF\": job.run_dir: expected UTF-8 text without control "
       "characters, got \"\xFF\""},
      {"model.num_kv_heads=3",
       "override \"model.num_kv_heads=3\": model.num_kv_heads: expected a divisor of "
       "model.num_heads (4), got 3"},
  };
  for (const auto& [argument, error] : mistakes) {
    EXPECT_EQ(error_of(kMinimal, {argument}), error);
  }
}

TEST(ReadConfig, OverridesReplaceTheFileAndLaterOnesEarlierOnes) {
  const TrainConfig config =
      read(kMinimal, {"training.steps=5", "data.train=[b.txt, \"c,d.txt\"]", "training.steps=7",
                      "generation.prompt=Once: [upon] 'a' #time", "data.cache_dir=here",
                      "optimizer.lr=1e-3", "export.enable=false"});
  EXPECT_EQ(config.training.steps, 7);
  EXPECT_EQ(config.data.train, (std::vector<std::string>{"b.txt", "c,d.txt"}));
  EXPECT_EQ(config.generation.prompt, "Once: [upon] 'a' #time");
  EXPECT_EQ(config.data.cache_dir, "here");
  EXPECT_EQ(config.optimizer.lr, 1e-3);
  EXPECT_FALSE(config.export_.enable);
}

// "" is data::default_cache_dir(), where `data prepare` writes unless told otherwise.
TEST(ReadConfig, TokensAreCachedWhereDataPreparePutsThem) {
  EXPECT_EQ(read(kMinimal).data.cache_dir, "");
}

TEST(ReadConfig, TakesTextAsItStands) {
  const TrainConfig config = read(std::string(kMinimal) +
                                  "generation: {prompt: 010}\nvalidation:\n"
                                  "export: {dtype: \"bfloat16\"}\n");
  EXPECT_EQ(config.generation.prompt, "010");
  EXPECT_EQ(config.export_.dtype, "bfloat16");
}

TEST(ReadConfig, ResolvedConfigurationReadsBackEqual) {
  TrainConfig config = read(kMinimal);
  config.job.run_dir = "-tricky: \"run\" #1";
  config.generation.prompt = "line\nline\ttab \\ \" ' é 😀 {a: *b}";
  config.data.train = {"a,b.txt", "*.txt", "yes", "[x]", ""};
  config.optimizer.lr = 1.0 / 3.0;
  config.optimizer.eps = 5e-324;
  config.training.seed = 9223372036854775807;
  const std::string yaml = to_yaml(config);
  const TrainConfig again = read(yaml);
  EXPECT_EQ(to_yaml(again), yaml);
  EXPECT_EQ(again.job.run_dir, config.job.run_dir);
  EXPECT_EQ(again.generation.prompt, config.generation.prompt);
  EXPECT_EQ(again.data.train, config.data.train);
  EXPECT_EQ(again.optimizer.lr, config.optimizer.lr);
  EXPECT_EQ(again.optimizer.eps, config.optimizer.eps);
  EXPECT_EQ(again.training.seed, config.training.seed);
}

TEST(ReadConfig, ShapeComesFromTheHuggingFaceDirectory) {
  const std::string yaml =
      "job: {run_dir: x}\ntokenizer: {kind: huggingface}\ndata: {train: [a.txt]}\n"
      "model: {initial_load_path: hf}\n";
  TrainConfig config = read(yaml);
  EXPECT_EQ(config.tokenizer.path, "hf");
  config.model.dim = 123;  // as if filled in from config.json
  EXPECT_EQ(to_yaml(config).find("\n  dim:"), std::string::npos);
  EXPECT_EQ(to_yaml(read(to_yaml(config))), to_yaml(config));
  EXPECT_EQ(error_of(yaml, {"model.dim=64"}),
            "override \"model.dim=64\": model.dim: expected no key of the shape beside "
            "model.initial_load_path, whose config.json decides it; remove it");
}

TEST(ReadConfig, ReadsFilesAndSaysWhyNot) {
  const std::string folder = testing::TempDir();
  const std::string path = folder + "/config_reader_test.yaml";
  std::ofstream(path) << kMinimal;
  EXPECT_EQ(read_config(path, {}).model.dim, 64);
  const auto error = [](const std::string& bad) {
    try {
      read_config(bad, {});
    } catch (const ConfigError& what) {
      return std::string(what.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(error(path + ".missing"),
            path + ".missing: expected a readable YAML file, got No such file or directory");
  EXPECT_EQ(error(folder), folder + ": expected a readable YAML file, got a directory");
}

TEST(ReadConfig, FindsSourcesInTheRepository) {
  namespace fs = std::filesystem;
  const fs::path root = fs::path(testing::TempDir()) / "config_reader_root";
  fs::create_directories(root / "only_there/deep");
  fs::create_directories(root / "both");
  fs::create_directories("both");
  std::ofstream(root / "only_there/file.txt") << "x";
  const std::vector<std::string> overrides = {
      "data.train=[\"only_there/**/*.py\", only_there/file.txt, \"both/*.txt\", nowhere.txt, "
      "\"*.txt\"]"};
  setenv("NARROWGAUGE_ROOT", root.c_str(), 1);
  const auto found = read(kMinimal, overrides).data.train;
  unsetenv("NARROWGAUGE_ROOT");
  EXPECT_EQ(found, (std::vector<std::string>{(root / "only_there/**/*.py").string(),
                                             (root / "only_there/file.txt").string(), "both/*.txt",
                                             "nowhere.txt", "*.txt"}));
  EXPECT_EQ(read(kMinimal, overrides).data.train[0], "only_there/**/*.py");
}

TEST(ReadConfig, FindsTheFileInTheRepository) {
  namespace fs = std::filesystem;
  const fs::path root = fs::path(testing::TempDir()) / "config_reader_root";
  fs::create_directories(root / "set");
  std::ofstream(root / "set/there.yaml") << kMinimal;
  std::ofstream(root / "config_here.yaml") << "model: {}\n";
  std::ofstream("config_here.yaml") << kMinimal;
  EXPECT_THROW(read_config("set/there.yaml", {}), ConfigError);
  setenv("NARROWGAUGE_ROOT", root.c_str(), 1);
  EXPECT_EQ(read_config("set/there.yaml", {}).model.dim, 64);
  EXPECT_EQ(read_config("config_here.yaml", {}).model.dim, 64);
  EXPECT_THROW(read_config("set/nowhere.yaml", {}), ConfigError);
  unsetenv("NARROWGAUGE_ROOT");
}

}  // namespace
}  // namespace narrowgauge::trainer
