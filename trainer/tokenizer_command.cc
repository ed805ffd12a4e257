#include "trainer/tokenizer_command.h"

#include <unistd.h>

#include <charconv>
#include <chrono>
#include <cstdio>

// As in command_line.cc: cxxopts would split lists at commas, and no argument holds NUL.
#define CXXOPTS_VECTOR_DELIMITER '\0'
#include <cxxopts.hpp>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <thread>
#include <vector>

#include "data/bpe_trainer.h"
#include "data/source_files.h"
#include "data/text_source.h"
#include "data/tokenizer.h"

namespace narrowgauge::trainer {
namespace {

using nlohmann::json;

constexpr int kDone = 0;
constexpr int kFailure = 1;
constexpr int kUsage = 2;

constexpr const char* kOverview =
    "Trains a tokenizer, encodes and decodes text.\n\n"
    "usage: narrowgauge tokenizer train --output FILE --vocab-size N [options] FILE|DIR|GLOB ...\n"
    "       narrowgauge tokenizer encode --tokenizer FILE [options] < text\n"
    "       narrowgauge tokenizer decode --tokenizer FILE [options] < ids\n\n"
    "`narrowgauge tokenizer train --help` and the like tell more.\n";

// Bad arguments; the exit code is kUsage.
struct ArgumentError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

cxxopts::ParseResult parse(cxxopts::Options& options, std::span<const std::string> arguments) {
  std::vector<const char*> argv = {"narrowgauge"};
  for (const std::string& argument : arguments) {
    argv.push_back(argument.c_str());
  }
  try {
    return options.parse(static_cast<int>(argv.size()), argv.data());
  } catch (const cxxopts::exceptions::exception& error) {
    throw ArgumentError(error.what());
  }
}

template <typename T>
T required(const cxxopts::ParseResult& parsed, const std::string& name) {
  if (parsed.count(name) == 0) {
    throw ArgumentError("expected --" + name + ", got none");
  }
  return parsed[name].as<T>();
}

// One line a stage; on a terminal it counts up in place.
class Progress {
 public:
  void report(double fraction, std::string_view stage) {
    const int percent = static_cast<int>(100 * fraction);
    if (stage == stage_ && (!is_terminal_ || percent == percent_)) {
      return;
    }
    if (stage != stage_) {
      finish();
    }
    stage_ = stage;
    percent_ = percent;
    if (is_terminal_) {
      std::fprintf(stderr, "\r[tokenizer] %s %3d %%", stage_.c_str(), percent);
    } else {
      std::fprintf(stderr, "[tokenizer] %s\n", stage_.c_str());
    }
  }

  // Ends the line of the stage.
  void finish() {
    if (is_terminal_ && !stage_.empty()) {
      std::fputc('\n', stderr);
    }
    stage_.clear();
  }

 private:
  bool is_terminal_ = isatty(STDERR_FILENO) == 1;
  std::string stage_;
  int percent_ = -1;
};

std::vector<std::string> read_documents(const std::vector<std::string>& patterns,
                                        const data::TextOptions& options, Progress& progress) {
  std::vector<data::SourceFile> files;
  for (const std::string& path : data::expand_paths(patterns)) {
    files.push_back(data::describe_file(path));
  }
  data::TextSource source(std::move(files), options);
  std::vector<std::string> documents;
  while (auto record = source.next()) {
    documents.push_back(source.decode(std::move(*record)));
    progress.report(
        static_cast<double>(source.bytes_read()) / static_cast<double>(source.total_bytes()),
        "reading text");
  }
  return documents;
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

std::string train(const std::vector<std::string>& documents,
                  const data::BpeTrainerOptions& options) {
  try {
    return data::train_bpe(std::vector<std::string_view>(documents.begin(), documents.end()),
                           options);
  } catch (const std::invalid_argument& error) {
    throw ArgumentError(error.what());
  }
}

int run_train(std::span<const std::string> arguments) {
  cxxopts::Options options(
      "narrowgauge tokenizer train",
      "Trains a byte-level BPE on text and writes a tokenizer.json for Hugging Face tokenizers.\n"
      "The first special token ends documents. When FILE is named tokenizer.json, a\n"
      "tokenizer_config.json that says so is written beside it.\n");
  options.positional_help("FILE|DIR|GLOB ...");
  options.add_options()("output", "tokenizer.json to write", cxxopts::value<std::string>(), "FILE")(
      "vocab-size", "entries, the 256 bytes and special tokens included", cxxopts::value<int64_t>(),
      "N")("pre-tokenizer", "llama3 or gpt2",
           cxxopts::value<std::string>()->default_value("llama3"))(
      "special-token", "in place of <|endoftext|>; may be given more than once",
      cxxopts::value<std::vector<std::string>>(),
      "TEXT")("field", "of the objects in .jsonl files",
              cxxopts::value<std::string>()->default_value("text"))(
      "replace-invalid-utf8", "take text that is not UTF-8, with U+FFFD for what is wrong")(
      "threads", "default: one a core", cxxopts::value<int>(), "N")("help", "print this help")(
      "files", "text", cxxopts::value<std::vector<std::string>>());
  options.parse_positional({"files"});
  const auto parsed = parse(options, arguments);
  if (parsed.count("help") > 0) {
    std::cout << options.help();
    return kDone;
  }
  data::BpeTrainerOptions training;
  training.vocab_size = required<int64_t>(parsed, "vocab-size");
  training.pre_tokenizer = parsed["pre-tokenizer"].as<std::string>();
  training.num_threads = parsed.count("threads") > 0
                             ? parsed["threads"].as<int>()
                             : static_cast<int>(std::thread::hardware_concurrency());
  if (parsed.count("special-token") > 0) {
    training.special_tokens = parsed["special-token"].as<std::vector<std::string>>();
  }
  const std::filesystem::path output = required<std::string>(parsed, "output");
  if (parsed.count("files") == 0) {
    throw ArgumentError("expected text to train on, got none; name files, directories or globs");
  }

  const auto start = std::chrono::steady_clock::now();
  Progress progress;
  training.progress = [&](double fraction, std::string_view stage) {
    progress.report(fraction, stage);
  };
  data::TextOptions text_options;
  text_options.text_field = parsed["field"].as<std::string>();
  text_options.replace_invalid_utf8 = parsed.count("replace-invalid-utf8") > 0;
  const std::vector<std::string> documents =
      read_documents(parsed["files"].as<std::vector<std::string>>(), text_options, progress);
  size_t num_bytes = 0;
  for (const std::string& document : documents) {
    num_bytes += document.size();
  }
  const std::string tokenizer = train(documents, training);
  progress.finish();
  write_file(output, tokenizer);
  if (output.filename() == "tokenizer.json") {
    write_file(output.parent_path() / "tokenizer_config.json",
               data::tokenizer_config_json(training));
  }
  const int64_t size = data::load_tokenizer({"huggingface", output.string()})->vocab_size();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::fprintf(stderr,
               "[tokenizer] wrote %s: %lld entries%s, from %zu documents, %.1f MB, %.1f s\n",
               output.c_str(), static_cast<long long>(size),
               size < training.vocab_size ? " (the text has no more pairs)" : "", documents.size(),
               static_cast<double>(num_bytes) / 1e6, seconds);
  return kDone;
}

cxxopts::Options conversion_options(const char* name, const char* description) {
  cxxopts::Options options(std::string("narrowgauge tokenizer ") + name, description);
  options.add_options()("tokenizer", "file of the tokenizer, or its directory",
                        cxxopts::value<std::string>()->default_value(""), "FILE")(
      "kind", "bytes, huggingface, gpt2 or sentencepiece; default: by the file's name",
      cxxopts::value<std::string>(), "KIND")(
      "json", "texts are JSON strings, so that they may hold newlines")("help", "print this help");
  return options;
}

std::string kind_of(const std::string& path) {
  if (path.ends_with(".model")) {
    return "sentencepiece";
  }
  return path.ends_with("encoder.json") || path.ends_with("vocab.json") ? "gpt2" : "huggingface";
}

std::unique_ptr<data::Tokenizer> open_tokenizer(const cxxopts::ParseResult& parsed) {
  const auto path = parsed["tokenizer"].as<std::string>();
  const bool has_kind = parsed.count("kind") > 0;
  if (path.empty() && !has_kind) {
    throw ArgumentError("expected --tokenizer FILE, got none");
  }
  const std::string kind = has_kind ? parsed["kind"].as<std::string>() : kind_of(path);
  if (kind == "none") {
    throw ArgumentError("expected a tokenizer kind that encodes text, got 'none'");
  }
  try {
    return data::load_tokenizer({kind, path});
  } catch (const std::invalid_argument& error) {
    throw ArgumentError(error.what());
  }
}

// Writes convert(line) for each line of standard input; errors get the line's number.
template <typename Convert>
int convert_lines(const Convert& convert) {
  std::ios::sync_with_stdio(false);
  std::string line;
  std::string out;
  for (int64_t number = 1; std::getline(std::cin, line); ++number) {
    out.clear();
    try {
      convert(line, out);
    } catch (const std::exception& error) {
      std::cout.flush();
      throw std::runtime_error("line " + std::to_string(number) + ": " + error.what());
    }
    out += '\n';
    std::cout.write(out.data(), static_cast<std::streamsize>(out.size()));
  }
  std::cout.flush();
  if (!std::cout) {
    throw std::runtime_error("expected to write to standard output, got an error");
  }
  return kDone;
}

void append_ids(const std::vector<int32_t>& ids, std::string& out) {
  char digits[16];
  out += '[';
  for (size_t i = 0; i < ids.size(); ++i) {
    out += i == 0 ? "" : ", ";
    out.append(digits, std::to_chars(digits, digits + sizeof(digits), ids[i]).ptr);
  }
  out += ']';
}

int run_encode(std::span<const std::string> arguments) {
  cxxopts::Options options = conversion_options(
      "encode", "Prints the token ids of each line of standard input as a JSON array.\n");
  options.add_options()("document", "with the tokens that begin and end a document");
  const auto parsed = parse(options, arguments);
  if (parsed.count("help") > 0) {
    std::cout << options.help();
    return kDone;
  }
  const auto tokenizer = open_tokenizer(parsed);
  const bool is_json = parsed.count("json") > 0;
  const bool is_document = parsed.count("document") > 0;
  return convert_lines([&](const std::string& line, std::string& out) {
    const std::string text = is_json ? json::parse(line).get<std::string>() : line;
    append_ids(is_document ? tokenizer->encode_document(text) : tokenizer->encode(text), out);
  });
}

int run_decode(std::span<const std::string> arguments) {
  cxxopts::Options options = conversion_options(
      "decode", "Prints the text of each line of standard input, a JSON array of token ids.\n");
  const auto parsed = parse(options, arguments);
  if (parsed.count("help") > 0) {
    std::cout << options.help();
    return kDone;
  }
  const auto tokenizer = open_tokenizer(parsed);
  const bool is_json = parsed.count("json") > 0;
  return convert_lines([&](const std::string& line, std::string& out) {
    const std::string text = tokenizer->decode(json::parse(line).get<std::vector<int32_t>>());
    out += is_json ? json(text).dump(-1, ' ', false, json::error_handler_t::replace) : text;
  });
}

int dispatch(std::span<const std::string> arguments) {
  const std::string command = arguments.empty() ? "" : arguments.front();
  if (command == "--help" || command == "-h" || command == "help") {
    std::cout << kOverview;
    return kDone;
  }
  if (command == "train") {
    return run_train(arguments.subspan(1));
  }
  if (command == "encode") {
    return run_encode(arguments.subspan(1));
  }
  if (command == "decode") {
    return run_decode(arguments.subspan(1));
  }
  throw ArgumentError("expected train, encode or decode, got " +
                      (command.empty() ? "nothing" : "'" + command + "'") +
                      "; see narrowgauge tokenizer --help");
}

}  // namespace

int tokenizer_command(std::span<const std::string> arguments) {
  try {
    return dispatch(arguments);
  } catch (const ArgumentError& error) {
    std::fprintf(stderr, "narrowgauge tokenizer: %s\n", error.what());
    return kUsage;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "narrowgauge tokenizer: %s\n", error.what());
    return kFailure;
  }
}

}  // namespace narrowgauge::trainer
