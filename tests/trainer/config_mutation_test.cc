// Whatever stands in the file, the reader returns a configuration that it can write and read back,
// or throws ConfigError with a place: no other exception, no crash, no hang.

#include <gtest/gtest.h>

#include <random>

#include "trainer/config_reader.h"
#include "trainer/config_schema.h"
#include "trainer/config_writer.h"

namespace narrowgauge::trainer {
namespace {

constexpr const char* kSeed =
    "job: {run_dir: runs/x}\n"
    "model:\n  architecture: llama\n  dim: 64\n  num_heads: 4\n  num_layers: 2\n  ffn_dim: 128\n"
    "tokenizer: {kind: bytes}\n"
    "data:\n  train: [\"a/**/*.txt\", b.txt]\n  validation_fraction: 0.05\n"
    "training: {steps: 100, seq_len: 256, local_batch_size: 8, seed: 42}\n"
    "optimizer: {lr: 3.0e-4}\n"
    "generation: {prompt: \"def \\u00e9\\n\", interval: 10}\n"
    "export: {enable: false}\n";

// True if accepted. Anything thrown but ConfigError reaches the test and fails it.
bool read_survives(const std::string& text, const std::vector<std::string>& overrides) {
  try {
    const TrainConfig config = read_config_text(text, "c.yaml", overrides);
    const std::string yaml = to_yaml(config);
    EXPECT_EQ(to_yaml(read_config_text(yaml, "resolved", {})), yaml) << text;
    return true;
  } catch (const ConfigError& error) {
    const std::string_view what = error.what();
    EXPECT_TRUE(what.starts_with("c.yaml:") || what.starts_with("override \"")) << what;
    return false;
  }
}

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  size_t below(size_t bound) { return random_() % bound; }

  std::string fragment() {
    static const std::vector<std::string> kFragments = {"{",
                                                        "}",
                                                        "[",
                                                        "]",
                                                        ":",
                                                        ": ",
                                                        ",",
                                                        "\n",
                                                        "\n  ",
                                                        "- ",
                                                        "? ",
                                                        "&a ",
                                                        "*a",
                                                        "!!int ",
                                                        "!x ",
                                                        "\"",
                                                        "'",
                                                        "\\",
                                                        "|\n",
                                                        ">-\n",
                                                        "#",
                                                        "---\n",
                                                        "...\n",
                                                        "%YAML 1.2\n",
                                                        "<<: ",
                                                        "\t",
                                                        "\r",
                                                        "~",
                                                        "null",
                                                        "true",
                                                        "yes",
                                                        "010",
                                                        "1e3",
                                                        "-1",
                                                        "0",
                                                        ".inf",
                                                        "1e999",
                                                        "99999999999999999999",
                                                        "é",
                                                        "\xFF",
                                                        "\x04",
                                                        std::string(1, '\0'),
                                                        "\xEF\xBB\xBF",
                                                        "\xC2\x85",
                                                        "\xE2\x80\xA8",
                                                        "\"\\x00\"",
                                                        "\"\\ud800\"",
                                                        "\"\\U0010FFFF\"",
                                                        "@",
                                                        "`",
                                                        "=",
                                                        "{{{{",
                                                        "[[[[",
                                                        "\n\n",
                                                        "random_tokens",
                                                        "initial_load_path: x",
                                                        "huggingface"};
    if (below(3) == 0) {
      const auto keys = config_schema();
      const ConfigKey& key = keys[below(keys.size())];
      return below(2) == 0 ? std::string(key.name) + ": " : std::string(key.section) + ": ";
    }
    return kFragments[below(kFragments.size())];
  }

  std::string mutate(std::string text) {
    for (size_t edits = 1 + below(4); edits > 0; --edits) {
      const size_t at = below(text.size() + 1);
      const size_t length = std::min(below(12), text.size() - at);
      switch (below(5)) {
        case 0:
          text.erase(at, length);
          break;
        case 1:
          text.insert(at, text.substr(below(text.size() + 1), below(40)));
          break;
        case 2:
          text.resize(at);
          break;
        case 3:
          text.replace(at, length, fragment());
          break;
        default:
          text.insert(at, fragment());
      }
    }
    return text;
  }

 private:
  std::mt19937_64 random_;
};

TEST(ConfigMutation, FilesNeverBreakTheReader) {
  Mutator mutator(20260101);
  int accepted = 0;
  constexpr int kRounds = 20000;
  for (int i = 0; i < kRounds; ++i) {
    accepted += read_survives(mutator.mutate(kSeed), {}) ? 1 : 0;
  }
  EXPECT_GT(accepted, kRounds / 100);  // otherwise the mutations only ever test the YAML parser
  EXPECT_LT(accepted, kRounds);
}

TEST(ConfigMutation, OverridesNeverBreakTheReader) {
  Mutator mutator(20260102);
  int accepted = 0;
  constexpr int kRounds = 10000;
  for (int i = 0; i < kRounds; ++i) {
    const auto keys = config_schema();
    const ConfigKey& key = keys[mutator.below(keys.size())];
    std::string argument = key.path() + "=" + format_value(key, TrainConfig{});
    argument = mutator.below(2) == 0 ? mutator.mutate(argument) : argument + mutator.fragment();
    accepted += read_survives(kSeed, {argument}) ? 1 : 0;
  }
  EXPECT_GT(accepted, kRounds / 100);
  EXPECT_LT(accepted, kRounds);
}

TEST(ConfigMutation, HostileFilesEndQuickly) {
  std::string bomb = "a: &a [x]\n";
  for (char c = 'b'; c < 'k'; ++c) {
    bomb += std::string(1, c) + ": &" + c + " [*" + char(c - 1) + ", *" + char(c - 1) + "]\n";
  }
  std::string many_keys = "job:\n";
  for (int i = 0; i < 20000; ++i) {
    many_keys += "  k" + std::to_string(i) + ": 1\n";
  }
  std::string dashes;
  for (int i = 0; i < 100000; ++i) {
    dashes += "- ";
  }
  for (const std::string& text :
       {bomb, many_keys, dashes, std::string(200000, '['), std::string(200000, '{'),
        std::string(200000, '?'), std::string(200000, '"'), std::string(200000, '\n'),
        "job: {run_dir: \"" + std::string(200000, 'x'), std::string(200000, ':')}) {
    EXPECT_FALSE(read_survives(text, {})) << text.substr(0, 50);
  }
}

}  // namespace
}  // namespace narrowgauge::trainer
