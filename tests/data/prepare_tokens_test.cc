#include "data/prepare_tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <thread>

#include "data/byte_tokenizer.h"
#include "tests/data/shifted_byte_tokenizer.h"
#include "tests/data/temporary_directory.h"

namespace narrowgauge::data {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::vector<int64_t> read_all(const TokenStorage& storage) {
  std::vector<int64_t> ids(storage.num_tokens());
  storage.read(0, ids);
  return ids;
}

std::vector<int64_t> ends_of(const TokenStorage& storage) {
  std::vector<int64_t> ends;
  for (const auto& document : storage.documents()) ends.push_back(document.end);
  return ends;
}

class PrepareTokens : public ::testing::Test {
 protected:
  std::shared_ptr<const TokenCache> prepare(const std::vector<std::string>& paths,
                                            const Tokenizer& tokenizer, int num_threads = 2) {
    PrepareOptions options;
    options.cache_dir = directory_.file("cache");
    options.chat = chat_;
    options.num_threads = num_threads;
    options.progress = [this](std::string_view stage, double fraction, int64_t) {
      EXPECT_GE(fraction, 0);
      EXPECT_LE(fraction, 1);
      stages_.insert(std::string(stage));
    };
    std::vector<SourceFile> files;
    for (const auto& path : paths) files.push_back(describe_file(path));
    return prepare_tokens(files, tokenizer, options);
  }

  TemporaryDirectory directory_;
  std::set<std::string> stages_;
  ChatFormat chat_;
};

constexpr const char* kConversations =
    R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
{"messages": [{"role": "user", "content": "c"}]}

{"messages": [{"role": "assistant", "content": "d"}], "tools": null, "id": 7}
)";

TEST_F(PrepareTokens, WritesConversationsAndTheirAnswers) {
  chat_.chat_template = std::make_shared<const ChatTemplate>(
      "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}."
      "{% endgeneration %}{% else %}{{ m.content }}?{% endif %}{% endfor %}",
      "test", Json::object());
  const auto file = directory_.write("a.jsonl", kConversations);
  const ShiftedByteTokenizer tokenizer;
  const auto cache = prepare({file}, tokenizer);
  std::vector<uint8_t> ignored(cache->num_tokens());
  cache->read_ignored(0, ignored);
  std::string text;
  std::string targets;
  const auto ids = read_all(*cache);
  for (size_t i = 0; i < ids.size(); ++i) {
    text += static_cast<char>(ids[i] - 1);
    if (ignored[i] == 0) targets += text.back();
  }
  EXPECT_EQ(text, "a?b.c?d.");
  EXPECT_EQ(targets, "b.d.");
  EXPECT_THAT(ends_of(*cache), ElementsAre(4, 6, 8));
  // Whatever changes a text or a target makes another cache.
  EXPECT_EQ(prepare({file}, tokenizer)->name(), cache->name());
  chat_.train_on_input = true;
  const auto all = prepare({file}, tokenizer);
  EXPECT_NE(all->name(), cache->name());
  EXPECT_EQ(read_all(*all), ids);
  all->read_ignored(0, ignored);
  EXPECT_THAT(ignored, Each(0));
}

TEST_F(PrepareTokens, NamesTheLineOfAWrongConversation) {
  chat_.chat_template = std::make_shared<const ChatTemplate>(ChatTemplate::load("mistral", ""));
  const ShiftedByteTokenizer tokenizer;
  const auto error = [&](const std::string& content) {
    const auto file = directory_.write("wrong.jsonl", content);
    return error_of([&] { prepare({file}, tokenizer); });
  };
  const std::string good = R"({"messages": [{"role": "user", "content": "a"}]})"
                           "\n";
  EXPECT_THAT(error(good + "{"), HasSubstr("wrong.jsonl:2"));
  EXPECT_THAT(error(good + R"({"text": "a"})"), HasSubstr("wrong.jsonl:2: expected {\"messages\""));
  EXPECT_THAT(error(good + good + R"({"messages": [{"role": "assistant", "content": "a"}]})"),
              HasSubstr("wrong.jsonl:3: chat template mistral:"));
  std::string deep;
  for (int i = 0; i < 200'000; ++i) deep += "[";
  EXPECT_THAT(error(R"({"messages": )" + deep), HasSubstr("at most 100 levels"));
  const auto text = directory_.write("a.txt", "text");
  EXPECT_THAT(error_of([&] { prepare({text}, tokenizer); }), HasSubstr("expected a .jsonl file"));
}

TEST_F(PrepareTokens, SeparatesDocumentsByTheEndToken) {
  const auto text = directory_.write("a.txt", "ab");
  const auto lines =
      directory_.write("b.jsonl", "{\"text\":\"c\"}\n{\"text\":\"\"}\n{\"text\":\"d\"}");
  const auto cache = prepare({text, directory_.write("e.txt", ""), lines}, ShiftedByteTokenizer());
  EXPECT_THAT(read_all(*cache), ElementsAre('b', 'c', 0, 'd', 0, 'e', 0));
  EXPECT_THAT(ends_of(*cache), ElementsAre(3, 5, 7));
  EXPECT_EQ(cache->text_bytes(), 4u);
}

TEST_F(PrepareTokens, DoesNotRepeatTheEndTokenOfATemplate) {
  const auto path = directory_.write("a.txt", "ab");
  EXPECT_THAT(read_all(*prepare({path}, ShiftedByteTokenizer(1, 0, true))),
              ElementsAre('b', 'c', 0));
}

TEST_F(PrepareTokens, AddsNothingWithoutAnEndToken) {
  const auto path = directory_.write("a.txt", "ab");
  EXPECT_THAT(read_all(*prepare({path}, ShiftedByteTokenizer(1, std::nullopt))),
              ElementsAre('b', 'c'));
}

TEST_F(PrepareTokens, KeepsTheBytesOfAFileLargerThanAPiece) {
  std::string text;
  for (int i = 0; text.size() < 3'500'000; ++i) text += std::to_string(i) + " \xC3\xA9\n";
  const auto cache = prepare({directory_.write("a.txt", text)}, ByteTokenizer());
  ASSERT_EQ(cache->num_tokens(), static_cast<int64_t>(text.size()));
  EXPECT_THAT(ends_of(*cache), ElementsAre(text.size()));
  const auto ids = read_all(*cache);
  const std::string got(ids.begin(), ids.end());
  EXPECT_TRUE(got == text);
}

TEST_F(PrepareTokens, GivesTheSameFileWithAnyNumberOfThreads) {
  std::vector<std::string> paths;
  std::string lines;
  for (int i = 0; i < 300; ++i) {
    const std::string text(i * 97 % 5000, static_cast<char>('a' + i % 26));
    paths.push_back(directory_.write("t" + std::to_string(i) + ".txt", text));
    lines += "{\"text\":\"" + text + "\"}\n";
  }
  paths.push_back(directory_.write("z.jsonl", lines));
  std::set<std::string> contents;
  for (const int num_threads : {1, 2, 5}) {
    const auto cache = prepare(paths, ShiftedByteTokenizer(), num_threads);
    contents.insert(read_file(cache->name()));
    std::filesystem::remove(cache->name());
  }
  EXPECT_EQ(contents.size(), 1u);
}

TEST_F(PrepareTokens, ReusesACacheUntilSomethingChanges) {
  const auto path = directory_.write("a.txt", "first");
  const auto name = prepare({path}, ShiftedByteTokenizer())->name();
  EXPECT_THAT(stages_, ElementsAre("tokenizing"));
  stages_.clear();
  EXPECT_EQ(prepare({path}, ShiftedByteTokenizer())->name(), name);
  EXPECT_THAT(stages_, ElementsAre());

  EXPECT_NE(prepare({path}, ShiftedByteTokenizer(2))->name(), name);
  const auto later = std::filesystem::last_write_time(path) + std::chrono::seconds(1);
  directory_.write("a.txt", "other");
  std::filesystem::last_write_time(path, later);
  const auto changed = prepare({path}, ShiftedByteTokenizer());
  EXPECT_NE(changed->name(), name);
  EXPECT_EQ(read_all(*changed)[0], 'o' + 1);
}

TEST_F(PrepareTokens, MakesADamagedCacheAnewAndSaysWhy) {
  const auto path = directory_.write("a.txt", "some text");
  const auto name = prepare({path}, ShiftedByteTokenizer())->name();
  const std::string good = read_file(name);
  for (size_t size = 0; size < good.size(); size += 5) {
    std::filesystem::resize_file(name, size);
    stages_.clear();
    prepare({path}, ShiftedByteTokenizer());
    EXPECT_EQ(read_file(name), good);
    EXPECT_THAT(*stages_.begin(), StartsWith("making the token cache anew: '" + name));
  }
  // Another cache under this name: undamaged, but made from something else.
  const auto other = prepare({path}, ShiftedByteTokenizer(2))->name();
  std::filesystem::copy_file(other, name, std::filesystem::copy_options::overwrite_existing);
  EXPECT_EQ(read_all(*prepare({path}, ShiftedByteTokenizer()))[0], 's' + 1);
}

TEST_F(PrepareTokens, ReportsTheFirstErrorInTheOrderOfTheData) {
  std::vector<std::string> paths;
  for (int i = 0; i < 40; ++i) {
    const std::string name = std::to_string(100 + i) + ".txt";
    paths.push_back(directory_.write(name, std::string(70'000, 'a') + (i >= 7 ? "\xFF" : "")));
  }
  for (int repeat = 0; repeat < 5; ++repeat) {
    EXPECT_THAT(error_of([&] { prepare(paths, ShiftedByteTokenizer(), 4); }),
                StartsWith(paths[7] + ": expected UTF-8, got byte 0xff at byte offset 70000"));
  }
  for (const auto& entry : std::filesystem::directory_iterator(directory_.file("cache"))) {
    EXPECT_EQ(entry.path().extension(), ".lock");  // no half-made cache stays
  }
}

TEST_F(PrepareTokens, NamesTheFirstOfFilesWithoutText) {
  const auto a = directory_.write("a.txt", "");
  const auto b = directory_.write("b.jsonl", "\n{\"text\":\"\"}\n");
  EXPECT_THAT(error_of([&] {
                prepare({a, b}, ShiftedByteTokenizer());
              }),
              HasSubstr("got 2 file(s) without any, '" + a + "'"));
}

TEST_F(PrepareTokens, RefusesADirectoryItCannotMake) {
  directory_.write("cache", "a file where the directory should be");
  EXPECT_THAT(error_of([&] { prepare({directory_.write("a.txt", "a")}, ByteTokenizer()); }),
              HasSubstr("set data.cache_dir"));
}

// Counts how often anything is encoded, and takes long enough for others to come.
class SlowTokenizer : public ShiftedByteTokenizer {
 public:
  explicit SlowTokenizer(std::string log) : log_(std::move(log)) {}
  std::vector<int32_t> encode_document(std::string_view text) const override {
    std::ofstream(log_, std::ios::app) << "x" << std::flush;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    return encode(text);
  }

 private:
  std::string log_;
};

TEST_F(PrepareTokens, IsMadeOnceByManyProcesses) {
  const auto path = directory_.write("a.txt", std::string(10'000, 'a'));
  const auto log = directory_.file("log");
  std::vector<pid_t> children;
  for (int i = 0; i < 4; ++i) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      bool ok = false;
      try {
        const auto cache = prepare({path}, SlowTokenizer(log), 1);
        cache->verify_tokens();
        ok = cache->num_tokens() == 10'001;
      } catch (...) {
      }
      ::_exit(ok ? 0 : 1);
    }
    children.push_back(child);
  }
  std::vector<int> statuses(children.size(), -1);
  for (size_t i = 0; i < children.size(); ++i) ::waitpid(children[i], &statuses[i], 0);
  EXPECT_THAT(statuses, Each(0));
  EXPECT_EQ(read_file(log), "x");
}

TEST_F(PrepareTokens, OutlivesAProcessKilledWhileItWrites) {
  const auto path = directory_.write("a.txt", std::string(10'000, 'a'));
  const auto log = directory_.file("log");
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    prepare({path}, SlowTokenizer(log), 1);
    ::_exit(0);
  }
  while (read_file(log).empty()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  ::kill(child, SIGKILL);
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(prepare({path}, SlowTokenizer(log), 1)->num_tokens(), 10'001);
}

TEST(DefaultCacheDir, FollowsTheEnvironment) {
  ::setenv("NARROWGAUGE_CACHE", "/somewhere", 1);
  EXPECT_EQ(default_cache_dir(), "/somewhere/tokens");
  ::unsetenv("NARROWGAUGE_CACHE");
  ::setenv("HOME", "/home/me", 1);
  EXPECT_EQ(default_cache_dir(), "/home/me/.cache/narrowgauge/tokens");
}

}  // namespace
}  // namespace narrowgauge::data
