#include "trainer/data_command.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <vector>

// A file name may hold a comma; no argument holds NUL.
#define CXXOPTS_VECTOR_DELIMITER '\0'
#include <cxxopts.hpp>

#include "data/held_out.h"
#include "data/prepare_tokens.h"
#include "data/source_files.h"
#include "data/token_cache.h"
#include "data/token_dataset.h"
#include "data/token_file.h"
#include "data/tokenizer.h"
#include "trainer/command_line.h"

namespace narrowgauge::trainer {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kUsage =
    "usage: narrowgauge data prepare [options] SOURCE...\n"
    "       narrowgauge data inspect [options] CACHE\n\n"
    "prepare tokenizes text once, ahead of the runs that name the same sources, tokenizer and\n"
    "options; train does it by itself when it finds no cache. inspect prints what a cache or a "
    ".bin\n"
    "file of token ids holds.\n\n"
    "examples:\n"
    "  narrowgauge data prepare --tokenizer tokenizer.json text/ 'more/**/*.jsonl'\n"
    "  narrowgauge data inspect cache/0123.tokens --tokenizer tokenizer.json --window 128\n\n"
    "`narrowgauge data prepare --help` and `narrowgauge data inspect --help` list the options.\n";

cxxopts::Options prepare_options() {
  cxxopts::Options options("narrowgauge data prepare",
                           "Tokenizes text files into a memory-mapped cache.");
  options.positional_help("SOURCE...").custom_help("[options]");
  options.add_options()  //
      ("tokenizer", "tokenizer file or its directory; without it, bytes",
       cxxopts::value<std::string>()->default_value(""), "PATH")  //
      ("kind", "bytes, huggingface, gpt2 or sentencepiece; by default what PATH looks like",
       cxxopts::value<std::string>()->default_value(""), "KIND")  //
      ("field", "field of .jsonl objects that holds the text",
       cxxopts::value<std::string>()->default_value("text"), "NAME")  //
      ("invalid-utf8", "error or replace (by U+FFFD)",
       cxxopts::value<std::string>()->default_value("error"), "WHAT")  //
      ("validation-fraction", "say what a run with this fraction holds out",
       cxxopts::value<double>()->default_value("0.05"), "F")  //
      ("cache-dir", "default: $NARROWGAUGE_CACHE/tokens or ~/.cache/narrowgauge/tokens",
       cxxopts::value<std::string>()->default_value(""), "DIR")                                 //
      ("threads", "0: one for each processor", cxxopts::value<int>()->default_value("0"), "N")  //
      ("sources", "files, directories and globs of text and .jsonl",
       cxxopts::value<std::vector<std::string>>())  //
      ("h,help", "print this");
  options.parse_positional("sources");
  return options;
}

cxxopts::Options inspect_options() {
  cxxopts::Options options("narrowgauge data inspect", "Prints what a file of tokens holds.");
  options.positional_help("CACHE").custom_help("[options]");
  options.add_options()  //
      ("tokenizer", "decode the first windows with this tokenizer file or directory",
       cxxopts::value<std::string>()->default_value(""), "PATH")  //
      ("kind", "bytes, huggingface, gpt2 or sentencepiece; by default what PATH looks like",
       cxxopts::value<std::string>()->default_value(""), "KIND")                             //
      ("window", "tokens of a window", cxxopts::value<int64_t>()->default_value("64"), "N")  //
      ("windows", "how many to print", cxxopts::value<int64_t>()->default_value("2"), "N")   //
      ("verify", "read every token and compare the checksum")                                //
      ("cache", "file that prepare wrote, or .bin", cxxopts::value<std::string>())           //
      ("h,help", "print this");
  options.parse_positional("cache");
  return options;
}

cxxopts::ParseResult parse(cxxopts::Options& options, std::span<const std::string> arguments) {
  std::vector<const char*> argv = {"narrowgauge"};
  for (const auto& argument : arguments) argv.push_back(argument.c_str());
  try {
    auto result = options.parse(static_cast<int>(argv.size()), argv.data());
    if (!result.unmatched().empty()) {
      throw UsageError("unexpected argument '" + result.unmatched().front() + "'");
    }
    return result;
  } catch (const cxxopts::exceptions::exception& error) {
    throw UsageError(error.what());
  }
}

// Null when neither is given.
std::unique_ptr<data::Tokenizer> open_tokenizer(const std::string& path, std::string kind) {
  namespace fs = std::filesystem;
  if (path.empty() && kind.empty()) return nullptr;
  if (kind.empty()) {
    const bool is_gpt2 = path.ends_with("encoder.json") || fs::exists(fs::path(path) / "vocab.bpe");
    kind = path.ends_with(".model") ? "sentencepiece" : is_gpt2 ? "gpt2" : "huggingface";
  }
  return data::load_tokenizer({kind, path});
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// A line on standard error every half second, and one whenever another stage begins.
class ProgressLines {
 public:
  void operator()(std::string_view stage, double fraction, int64_t tokens) {
    if (stage == stage_ && seconds_since(shown_) < 0.5) return;
    stage_ = stage;
    shown_ = Clock::now();
    const double seconds = seconds_since(start_);
    if (tokens == 0) {
      std::fprintf(stderr, "%s\n", stage_.c_str());
    } else {
      std::fprintf(stderr, "%s: %5.1f %%, %lld tokens, %.2f M tokens/s, %.0f s left\n",
                   stage_.c_str(), fraction * 100, static_cast<long long>(tokens),
                   static_cast<double>(tokens) / seconds / 1e6,
                   fraction > 0 ? seconds / fraction * (1 - fraction) : 0);
    }
  }

 private:
  Clock::time_point start_ = Clock::now();
  Clock::time_point shown_;
  std::string stage_;
};

void print_cache(const data::TokenCache& cache) {
  std::printf("cache       %s\n", cache.name().c_str());
  std::printf("tokens      %lld of %d bytes, ids below %lld\n",
              static_cast<long long>(cache.num_tokens()), cache.token_bytes(),
              static_cast<long long>(cache.vocab_size()));
  std::printf("documents   %zu\n", cache.documents().size());
  std::printf("text        %llu bytes, %.3f a token\n",
              static_cast<unsigned long long>(cache.text_bytes()),
              static_cast<double>(cache.text_bytes()) / static_cast<double>(cache.num_tokens()));
}

void print_split(const std::shared_ptr<const data::TokenCache>& cache, double fraction) {
  const auto split = data::hold_out({cache}, fraction);
  const data::TokenDataset validation(split.validation);
  std::printf("validation  %lld tokens (%.2f %%) of %lld documents\n",
              static_cast<long long>(validation.num_tokens()),
              100.0 * static_cast<double>(validation.num_tokens()) /
                  static_cast<double>(cache->num_tokens()),
              static_cast<long long>(validation.num_documents()));
}

int prepare(std::span<const std::string> arguments) {
  cxxopts::Options options = prepare_options();
  const auto parsed = parse(options, arguments);
  if (parsed.count("help") > 0) {
    std::cout << options.help();
    return kExitDone;
  }
  if (parsed.count("sources") == 0) throw UsageError("expected SOURCE..., got none");
  const auto fraction = parsed["validation-fraction"].as<double>();
  if (!(fraction >= 0 && fraction < 1)) {
    throw UsageError("--validation-fraction: expected a number in [0, 1), got " +
                     std::to_string(fraction));
  }
  const auto invalid_utf8 = parsed["invalid-utf8"].as<std::string>();
  if (invalid_utf8 != "error" && invalid_utf8 != "replace") {
    throw UsageError("--invalid-utf8: expected error or replace, got '" + invalid_utf8 + "'");
  }
  const auto path = parsed["tokenizer"].as<std::string>();
  const auto kind = parsed["kind"].as<std::string>();
  if (kind == "none") throw UsageError("--kind: expected a tokenizer to prepare with, got none");
  const auto tokenizer = open_tokenizer(path, path.empty() && kind.empty() ? "bytes" : kind);

  std::vector<data::SourceFile> files;
  for (const auto& file : data::expand_paths(parsed["sources"].as<std::vector<std::string>>())) {
    if (file.ends_with(".bin") || file.ends_with(".tokens")) {
      throw std::runtime_error("expected text, got '" + file +
                               "', which holds token ids; name it in data.train as it is");
    }
    files.push_back(data::describe_file(file));
  }
  data::PrepareOptions prepare;
  prepare.text.text_field = parsed["field"].as<std::string>();
  prepare.text.replace_invalid_utf8 = invalid_utf8 == "replace";
  prepare.cache_dir = parsed["cache-dir"].as<std::string>();
  prepare.num_threads = parsed["threads"].as<int>();
  bool is_made = false;
  ProgressLines lines;
  prepare.progress = [&](std::string_view stage, double done, int64_t tokens) {
    is_made = true;
    lines(stage, done, tokens);
  };
  const auto start = Clock::now();
  const auto cache = data::prepare_tokens(files, *tokenizer, prepare);
  const double seconds = seconds_since(start);
  print_cache(*cache);
  print_split(cache, fraction);
  if (is_made) {
    std::printf("time        %.2f s, %.2f MB/s, %.3f M tokens/s\n", seconds,
                static_cast<double>(cache->text_bytes()) / seconds / 1e6,
                static_cast<double>(cache->num_tokens()) / seconds / 1e6);
  } else {
    std::printf("time        the cache was there already\n");
  }
  return kExitDone;
}

void print_window(const data::TokenStorage& storage, int64_t begin, int64_t size,
                  const data::Tokenizer* tokenizer) {
  std::vector<int64_t> ids(std::min(size, storage.num_tokens() - begin));
  storage.read(begin, ids);
  std::printf("tokens [%lld, %lld)\n", static_cast<long long>(begin),
              static_cast<long long>(begin + static_cast<int64_t>(ids.size())));
  std::printf("  %s\n", nlohmann::json(ids).dump().c_str());
  if (tokenizer == nullptr) return;
  const std::vector<int32_t> narrow(ids.begin(), ids.end());
  // A window may begin within a character.
  const auto text = nlohmann::json(tokenizer->decode(narrow))
                        .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  std::printf("  %s\n", text.c_str());
}

int inspect(std::span<const std::string> arguments) {
  cxxopts::Options options = inspect_options();
  const auto parsed = parse(options, arguments);
  if (parsed.count("help") > 0) {
    std::cout << options.help();
    return kExitDone;
  }
  if (parsed.count("cache") == 0) throw UsageError("expected CACHE, got none");
  const auto window = parsed["window"].as<int64_t>();
  const auto num_windows = parsed["windows"].as<int64_t>();
  if (window < 1 || num_windows < 0) {
    throw UsageError("expected --window of at least 1 and --windows of at least 0, got " +
                     std::to_string(window) + " and " + std::to_string(num_windows));
  }
  const auto path = parsed["cache"].as<std::string>();
  const auto tokenizer =
      open_tokenizer(parsed["tokenizer"].as<std::string>(), parsed["kind"].as<std::string>());
  std::shared_ptr<const data::TokenStorage> storage;
  if (path.ends_with(".bin")) {
    storage = data::open_token_file(path, 0);
    std::printf("file        %s\ntokens      %lld\n", path.c_str(),
                static_cast<long long>(storage->num_tokens()));
  } else {
    const auto cache = std::make_shared<const data::TokenCache>(path);
    print_cache(*cache);
    if (parsed.count("verify") > 0) {
      cache->verify_tokens();
      std::printf("checksum    right\n");
    }
    storage = cache;
  }
  for (int64_t i = 0; i < num_windows && i * window < storage->num_tokens(); ++i) {
    print_window(*storage, i * window, window, tokenizer.get());
  }
  return kExitDone;
}

int dispatch(std::span<const std::string> arguments) {
  const std::string name = arguments.empty() ? "" : arguments[0];
  if (name == "prepare") return prepare(arguments.subspan(1));
  if (name == "inspect") return inspect(arguments.subspan(1));
  if (name == "--help" || name == "-h") {
    std::cout << kUsage;
    return kExitDone;
  }
  throw UsageError("expected prepare or inspect, got " +
                   (name.empty() ? "nothing" : "'" + name + "'"));
}

}  // namespace

int data_command(std::span<const std::string> arguments) {
  try {
    return dispatch(arguments);
  } catch (const UsageError& error) {
    std::cerr << "narrowgauge data: " << error.what() << "\nsee narrowgauge data --help\n";
    return kExitUsage;
  } catch (const std::exception& error) {
    std::cerr << "narrowgauge data: " << error.what() << "\n";
    return kExitFailure;
  }
}

}  // namespace narrowgauge::trainer
