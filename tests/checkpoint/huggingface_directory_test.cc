#include "checkpoint/huggingface_directory.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

namespace narrowgauge::checkpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

HuggingFaceConfig tiny_config() {
  HuggingFaceConfig config;
  config.transformer = {.vocab_size = 11,
                        .dim = 8,
                        .num_layers = 2,
                        .num_heads = 4,
                        .num_kv_heads = 2,
                        .head_dim = 2,
                        .ffn_dim = 6};
  config.eos_token_ids = {2};
  return config;
}

class HuggingFaceDirectoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* root = std::getenv("TEST_TMPDIR");
    std::string name = (fs::path(root ? root : "/tmp") / "huggingface.XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
    model_ = folder_ / "model";
    for (const ParameterSpec& spec : parameter_specs(config_.transformer)) {
      parameters_[spec.name] = at::rand(spec.sizes);
    }
  }
  void TearDown() override { fs::remove_all(folder_); }

  void write(const HuggingFaceWriteOptions& options = {.dtype = at::kFloat}) {
    write_huggingface_directory(
        model_, config_, [&](const std::string& name) { return parameters_.at(name); }, options);
  }

  // The weights as Hugging Face names them, to be changed and written back.
  std::map<std::string, at::Tensor> weights() {
    const SafetensorsFile file = SafetensorsFile::open(model_ / "model.safetensors");
    std::map<std::string, at::Tensor> weights;
    for (const std::string& name : file.names()) {
      weights[name] = file.tensor(name).clone();
    }
    return weights;
  }
  void put(const std::map<std::string, at::Tensor>& weights) {
    write_safetensors(model_ / "model.safetensors", {weights.begin(), weights.end()});
  }

  std::string open_error() {
    try {
      HuggingFaceDirectory::open(model_).validate();
    } catch (const std::runtime_error& error) {
      EXPECT_THAT(error.what(), HasSubstr(folder_.string()));
      return error.what();
    }
    return "";
  }

  fs::path folder_;
  fs::path model_;
  HuggingFaceConfig config_ = tiny_config();
  std::map<std::string, at::Tensor> parameters_;
};

TEST_F(HuggingFaceDirectoryTest, EveryRangeOfRowsOfEveryParameterIsBitEqual) {
  write({.dtype = at::kFloat, .max_shard_bytes = 300});
  const HuggingFaceDirectory directory = HuggingFaceDirectory::open(model_);
  EXPECT_THAT(directory.validate(), ElementsAre());
  for (const auto& [name, whole] : parameters_) {
    for (int64_t begin = 0; begin <= whole.size(0); ++begin) {
      for (int64_t end = begin; end <= whole.size(0); ++end) {
        const at::Tensor rows = directory.rows(name, begin, end);
        EXPECT_TRUE(rows.equal(whole.slice(0, begin, end))) << name << begin << end;
      }
    }
    EXPECT_TRUE(directory.parameter(name).equal(whole));
    EXPECT_THROW(directory.rows(name, 0, whole.size(0) + 1), std::invalid_argument);
    EXPECT_THROW(directory.rows(name, -1, 0), std::invalid_argument);
  }
  EXPECT_THROW(directory.parameter("layers.0.self_attn.q_proj.weight"), std::invalid_argument);
}

TEST_F(HuggingFaceDirectoryTest, StoredDtypeIsKeptOnRequest) {
  write({.dtype = at::kBFloat16});
  const HuggingFaceDirectory directory = HuggingFaceDirectory::open(model_);
  EXPECT_EQ(directory.config().dtype, "bfloat16");
  const at::Tensor expected = parameters_.at("norm.weight").to(at::kBFloat16);
  EXPECT_TRUE(directory.parameter("norm.weight", std::nullopt).equal(expected));
  EXPECT_EQ(directory.parameter("norm.weight").scalar_type(), at::kFloat);
}

TEST_F(HuggingFaceDirectoryTest, ShardsKeepTheirLimitAndIndexAppearsOnlyWhenNeeded) {
  write();
  EXPECT_FALSE(fs::exists(model_ / "model.safetensors.index.json"));
  write({.dtype = at::kFloat, .max_shard_bytes = 600});  // replaces the single file
  EXPECT_FALSE(fs::exists(model_ / "model.safetensors"));
  EXPECT_FALSE(fs::exists(folder_ / "model.tmp"));
  size_t num_shards = 0;
  for (const auto& entry : fs::directory_iterator(model_)) {
    if (entry.path().extension() != ".safetensors") {
      continue;
    }
    ++num_shards;
    const std::string bytes = read_file(entry.path());
    const auto header = parse_safetensors_header(bytes, bytes.size(), "shard");
    EXPECT_LE(bytes.size() - header.data_offset, 600U);
  }
  EXPECT_GT(num_shards, 3U);
}

TEST_F(HuggingFaceDirectoryTest, MissingWrongAndExtraTensorsAreListed) {
  write();
  auto changed = weights();
  changed.erase("model.layers.1.self_attn.k_proj.weight");
  changed["model.norm.weight"] = at::ones({1});  // would broadcast
  changed["model.embed_tokens.weight"] = changed["model.embed_tokens.weight"].to(at::kFloat8_e5m2);
  put(changed);
  const std::string error = open_error();
  EXPECT_THAT(error, HasSubstr("3 tensors"));
  EXPECT_THAT(error, HasSubstr("'model.layers.1.self_attn.k_proj.weight' is missing"));
  EXPECT_THAT(error, HasSubstr("'model.norm.weight': expected shape [8], got [1]"));
  EXPECT_THAT(error, HasSubstr("got F8_E5M2"));
  EXPECT_THROW(HuggingFaceDirectory::open(model_).parameter("norm.weight"), std::runtime_error);
}

TEST_F(HuggingFaceDirectoryTest, UnknownTensorsAreReportedAndTiedHeadMayBePresent) {
  config_.transformer.tie_word_embeddings = true;
  write();
  auto changed = weights();
  EXPECT_EQ(changed.count("lm_head.weight"), 0U);
  changed["lm_head.weight"] = changed["model.embed_tokens.weight"];
  changed["model.layers.0.self_attn.rotary_emb.inv_freq"] = at::ones({1});
  changed["classifier.weight"] = at::ones({1});
  put(changed);
  EXPECT_THAT(HuggingFaceDirectory::open(model_).validate(), ElementsAre("classifier.weight"));
}

TEST_F(HuggingFaceDirectoryTest, BrokenDirectoriesAreNamed) {
  EXPECT_THAT(open_error(), HasSubstr("there is nothing"));
  fs::create_directories(model_);
  EXPECT_THAT(open_error(), HasSubstr("config.json"));
  write_durable_file(model_ / "config.json", huggingface_config_json(config_));
  EXPECT_THAT(open_error(), HasSubstr("found neither"));
  write_durable_file(model_ / "pytorch_model.bin", "x");
  EXPECT_THAT(open_error(), HasSubstr("only pytorch_model.bin; convert it"));
  const auto put_index = [&](const std::string& text) {
    write_durable_file(model_ / "model.safetensors.index.json", text);
    return open_error();
  };
  EXPECT_THAT(put_index("{}"), HasSubstr("weight_map"));
  EXPECT_THAT(put_index(R"({"weight_map":{"a":"../secret"}})"), HasSubstr("beside it"));
  EXPECT_THAT(put_index(R"({"weight_map":{"a":".."}})"), HasSubstr("beside it"));
  EXPECT_THAT(put_index(R"({"weight_map":{"a":"m.safetensors"}})"),
              HasSubstr("shard m.safetensors is missing"));
  write_safetensors(model_ / "m.safetensors", {{"b", at::ones({1})}});
  EXPECT_THAT(put_index(R"({"weight_map":{"a":"m.safetensors"}})"),
              HasSubstr("do not belong together"));
}

TEST_F(HuggingFaceDirectoryTest, TokenizerFilesAreCopied) {
  write_durable_file(folder_ / "my.vocab", "abc");
  write({.dtype = at::kFloat, .copied_files = {{folder_ / "my.vocab", "my.vocab"}}});
  EXPECT_EQ(read_file(model_ / "my.vocab"), "abc");
  EXPECT_THROW(write({.copied_files = {{folder_ / "absent", "absent"}}}), std::runtime_error);
  EXPECT_EQ(open_error(), "");  // the export before is intact
}

TEST_F(HuggingFaceDirectoryTest, AFailingExportLeavesTheOldOneAndNothingElseIsDeleted) {
  write();
  const std::string old = read_file(model_ / "model.safetensors");
  int calls = 0;
  const auto failing = [&](const std::string& name) {
    TORCH_CHECK(++calls < 5, "lost");
    return parameters_.at(name).add(1);
  };
  EXPECT_THROW(write_huggingface_directory(model_, config_, failing), c10::Error);
  const auto misshapen = [&](const std::string&) { return at::ones({3}); };
  EXPECT_THROW(write_huggingface_directory(model_, config_, misshapen), c10::Error);
  EXPECT_EQ(read_file(model_ / "model.safetensors"), old);
  EXPECT_FALSE(fs::exists(folder_ / "model.tmp"));
  write_durable_file(model_ / "thesis.tex", "years of work");
  EXPECT_THROW(write(), std::runtime_error);
  EXPECT_EQ(read_file(model_ / "thesis.tex"), "years of work");
}

TEST_F(HuggingFaceDirectoryTest, AKilledExportIsNeverTakenForComplete) {
  for (int kill = 0; kill < 20; ++kill) {
    const pid_t child = ::fork();
    if (child == 0) {
      for (;;) {
        write({.dtype = at::kFloat, .max_shard_bytes = 400});
      }
    }
    ::usleep(500 + 700 * kill);
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    if (fs::exists(model_)) {
      EXPECT_EQ(open_error(), "");
    }
  }
  write();
  EXPECT_EQ(open_error(), "");
}

}  // namespace
}  // namespace narrowgauge::checkpoint
