#include "data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "data/bpe_byte_alphabet.h"
#include "data/sentencepiece_unigram.h"
#include "tests/data/temporary_directory.h"

namespace narrowgauge::data {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int32_t kHe = 256, kLl = 257, kHell = 258, kSpaceHe = 259, kHello = 260;

// All bytes in order, then: he, ll, hell, " he" and "hello", which no merge makes.
json small_tokenizer() {
  json vocab = json::object();
  for (int byte = 0; byte < 256; ++byte) {
    vocab[to_byte_alphabet(std::string(1, static_cast<char>(byte)))] = byte;
  }
  vocab["he"] = kHe;
  vocab["ll"] = kLl;
  vocab["hell"] = kHell;
  vocab["\u0120he"] = kSpaceHe;
  vocab["hello"] = kHello;
  const json merges = {"h e", {"l", "l"}, "he ll", "\u0120 he"};
  return {
      {"added_tokens", json::array()},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
}

json added(const std::string& content, json flags = json::object()) {
  json token = {{"content", content}, {"special", false}, {"normalized", false}};
  token.update(flags);
  return token;
}

std::unique_ptr<Tokenizer> load(const TemporaryDirectory& directory, const json& document) {
  return load_tokenizer({"huggingface", directory.write("tokenizer.json", document.dump())});
}

std::string load_error(const std::string& content) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("tokenizer.json", content);
  return error_of([&] { load_tokenizer({"huggingface", path}); });
}

TEST(Tokenizer, BytesGoThroughUnchanged) {
  const auto tokenizer = load_tokenizer({});
  const std::string all = {'\0', 'a', '\xFF', '\xC3'};
  EXPECT_THAT(tokenizer->encode(all), ElementsAre(0, 97, 255, 195));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(all)), all);
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{256, 65, -1}), "A");
  EXPECT_EQ(tokenizer->vocab_size(), 256);
  EXPECT_EQ(tokenizer->bos_id(), std::nullopt);
  EXPECT_THAT(tokenizer->files(), IsEmpty());
}

TEST(Tokenizer, NoneIsNoTokenizer) { EXPECT_EQ(load_tokenizer({"none", ""}), nullptr); }

TEST(Tokenizer, OptionsThatMakeNoSense) {
  EXPECT_THAT(error_of([] {
                load_tokenizer({"hugingface", "x"});
              }),
              HasSubstr("expected tokenizer kind bytes, huggingface, gpt2, sentencepiece or none, "
                        "got 'hugingface'"));
  EXPECT_THAT(error_of([] { load_tokenizer({"gpt2", ""}); }), HasSubstr("expected a path"));
  for (const char* kind : {"huggingface", "gpt2", "sentencepiece"}) {
    EXPECT_THAT(error_of([&] {
                  load_tokenizer({kind, "/nonexistent/vocab.json"});
                }),
                HasSubstr("/nonexistent/vocab.json: No such file"));
  }
}

TEST(Tokenizer, GuessesTheKindFromNames) {
  const auto kind = [](const std::string& path) { return guess_tokenizer(path).kind; };
  EXPECT_EQ(kind("bytes"), "bytes");
  EXPECT_EQ(kind("none"), "none");
  EXPECT_EQ(guess_tokenizer("bytes").path, "");
  EXPECT_EQ(kind("m/llama.model"), "sentencepiece");
  for (const char* name : {"encoder.json", "m/gpt2_encoder.json", "vocab.bpe", "m/vocab.json"}) {
    EXPECT_EQ(kind(name), "gpt2") << name;
  }
  EXPECT_EQ(kind("m/tokenizer.json"), "huggingface");
  EXPECT_EQ(kind("nonexistent"), "huggingface");
  EXPECT_EQ(guess_tokenizer("nonexistent").path, "nonexistent");
}

TEST(Tokenizer, GuessesTheKindOfADirectoryFromItsFiles) {
  const TemporaryDirectory directory;
  const auto kind = [&] { return guess_tokenizer(directory.path()).kind; };
  EXPECT_EQ(kind(), "huggingface");
  directory.write("vocab.json", "{}");
  EXPECT_EQ(kind(), "gpt2");
  directory.write("tokenizer.model", "x");
  EXPECT_EQ(kind(), "sentencepiece");
  directory.write("tokenizer.json", "{}");
  EXPECT_EQ(kind(), "huggingface");
}

TEST(Tokenizer, MergesByRankAndDecodes) {
  const TemporaryDirectory directory;
  const auto tokenizer = load(directory, small_tokenizer());
  EXPECT_THAT(tokenizer->encode("hello hello he"),
              ElementsAre(kHell, 'o', ' ', kHell, 'o', kSpaceHe));
  EXPECT_THAT(tokenizer->encode(""), IsEmpty());
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{kSpaceHe, kLl, -5, 99999, 'o'}), " hello");
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{0xE2, 0x82, 'a', 0xFF, 0xFF}),
            "\uFFFDa\uFFFD\uFFFD");
  EXPECT_EQ(tokenizer->vocab_size(), 261);
}

TEST(Tokenizer, IgnoreMergesTakesWholePieces) {
  const TemporaryDirectory directory;
  json document = small_tokenizer();
  document["model"]["ignore_merges"] = true;
  EXPECT_THAT(load(directory, document)->encode("hello hello"),
              ElementsAre(kHello, ' ', kHell, 'o'));
}

TEST(Tokenizer, InvalidUtf8NamesTheOffset) {
  const TemporaryDirectory directory;
  const auto tokenizer = load(directory, small_tokenizer());
  EXPECT_THAT(error_of([&] { tokenizer->encode("h\u00e9\xFF"); }),
              HasSubstr("got byte 0xFF at offset 3 of 4"));
  EXPECT_THAT(error_of([&] { tokenizer->encode("abc\xE2\x82"); }), HasSubstr("offset 3 of 5"));
  EXPECT_THAT(error_of([&] { tokenizer->encode("\xED\xA0\x80"); }), HasSubstr("offset 0"));
}

TEST(Tokenizer, AddedTokensLongestFirstWithTheirFlags) {
  const TemporaryDirectory directory;
  json document = small_tokenizer();
  document["added_tokens"] = {added("<a>"),
                              added("<a><b>"),
                              added("<l>", {{"lstrip", true}}),
                              added("<r>", {{"rstrip", true}}),
                              added("zz", {{"single_word", true}}),
                              added("<a>"),
                              added("hello")};
  const auto tokenizer = load(directory, document);
  const int32_t a = 261, ab = 262, left = 263, right = 264, word = 265;
  EXPECT_THAT(tokenizer->encode("<a><b><a>"), ElementsAre(ab, a));
  EXPECT_THAT(tokenizer->encode("x \u3000<l> y"), ElementsAre('x', left, ' ', 'y'));
  EXPECT_THAT(tokenizer->encode("x<r> \n y"), ElementsAre('x', right, 'y'));
  EXPECT_THAT(tokenizer->encode("x<r> <l>y"), ElementsAre('x', right, left, 'y'));
  EXPECT_THAT(tokenizer->encode("zz zzz zz-zz"),
              ElementsAre(word, ' ', 'z', 'z', 'z', ' ', word, '-', word));
  EXPECT_THAT(tokenizer->encode("\u00e9zz"), ElementsAre(0xC3, 0xA9, 'z', 'z'));
  // The model knows this one: its id stays.
  EXPECT_THAT(tokenizer->encode("hello"), ElementsAre(kHello));
  EXPECT_EQ(tokenizer->vocab_size(), 266);
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{ab, right}), "<a><b><r>");
}

TEST(Tokenizer, NormalizedTokensAreSoughtInNormalizedText) {
  const TemporaryDirectory directory;
  json document = small_tokenizer();
  document["normalizer"] = {{"type", "NFC"}};
  document["added_tokens"] = {added("caf\u00e9", {{"normalized", true}}), added("raw\u00e9")};
  const auto tokenizer = load(directory, document);
  EXPECT_THAT(tokenizer->encode("cafe\u0301"), ElementsAre(261));
  EXPECT_THAT(tokenizer->encode("raw\u00e9"), ElementsAre(262));
  EXPECT_THAT(tokenizer->encode("rawe\u0301"), ElementsAre('r', 'a', 'w', 0xC3, 0xA9));
}

TEST(Tokenizer, TemplateAndConfigNameTheEnds) {
  const TemporaryDirectory directory;
  json document = small_tokenizer();
  document["added_tokens"] = {added("<s>", {{"special", true}}), added("<e>", {{"special", true}})};
  document["post_processor"] = {
      {"type", "Sequence"},
      {"processors",
       {{{"type", "ByteLevel"}},
        {{"type", "TemplateProcessing"},
         {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
         {"special_tokens", {{"<s>", {{"ids", {261}}}}}}}}}};
  const auto tokenizer = load(directory, document);
  EXPECT_THAT(tokenizer->encode_document("a"), ElementsAre(261, 'a'));
  EXPECT_THAT(tokenizer->encode_document(""), ElementsAre(261));
  EXPECT_THAT(tokenizer->encode("a"), ElementsAre('a'));
  EXPECT_EQ(tokenizer->bos_id(), 261);
  EXPECT_EQ(tokenizer->eos_id(), std::nullopt);

  directory.write("tokenizer_config.json", R"({"eos_token": {"content": "<e>"}})");
  const auto configured = load_tokenizer({"huggingface", directory.path()});
  EXPECT_EQ(configured->eos_id(), 262);
  EXPECT_NE(configured->fingerprint(), tokenizer->fingerprint());
  EXPECT_THAT(configured->files(), ElementsAre(directory.file("tokenizer.json"),
                                               directory.file("tokenizer_config.json")));
}

TEST(Tokenizer, CharactersWithUnknownAndByteFallback) {
  const TemporaryDirectory directory;
  json document = small_tokenizer();
  document["pre_tokenizer"] = nullptr;
  document["decoder"] = nullptr;
  document["model"]["vocab"] = {{"a", 0}, {"\u00e9", 1}, {"a\u00e9", 2}, {"?", 3}};
  document["model"]["merges"] = {"a \u00e9"};
  EXPECT_THAT(load(directory, document)->encode("a\u00e9za"), ElementsAre(2, 0));
  document["model"]["unk_token"] = "?";
  EXPECT_THAT(load(directory, document)->encode("a\u00e9zza"), ElementsAre(2, 3, 3, 0));
  document["model"]["fuse_unk"] = true;
  EXPECT_THAT(load(directory, document)->encode("a\u00e9zza"), ElementsAre(2, 3, 0));
  document["model"]["byte_fallback"] = true;
  document["model"]["vocab"]["<0x7A>"] = 4;
  const auto tokenizer = load(directory, document);
  EXPECT_THAT(tokenizer->encode("az"), ElementsAre(0, 4));
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{0, 4}), "a <0x7A>");
}

TEST(Tokenizer, ManyThreadsShareOne) {
  const TemporaryDirectory directory;
  const auto tokenizer = load(directory, small_tokenizer());
  const std::string text = "hello world, hell is other people's tokenizers ";
  const std::vector<int32_t> expected = tokenizer->encode(text);
  std::vector<std::thread> threads;
  std::vector<int> num_equal(4, 0);
  for (int& count : num_equal) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        count += tokenizer->encode(text) == expected;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_THAT(num_equal, ElementsAre(200, 200, 200, 200));
}

TEST(Tokenizer, MalformedFilesSayWhere) {
  EXPECT_THAT(load_error(""), HasSubstr("empty"));
  EXPECT_THAT(load_error("{\"model\":\n  {]"), HasSubstr("line 2, column 4"));
  const std::string whole = small_tokenizer().dump();
  EXPECT_THAT(load_error(whole.substr(0, whole.size() / 2)), HasSubstr("expected JSON"));
  EXPECT_THAT(load_error("{}"), HasSubstr("expected the key \"model\""));
  EXPECT_THAT(load_error("[1]"), HasSubstr("tokenizer.json: "));
  EXPECT_THAT(load_error("{\"model\": 3}"), HasSubstr("tokenizer.json: "));
}

TEST(Tokenizer, FilesThatLie) {
  const auto error = [](const std::function<void(json&)>& change) {
    json document = small_tokenizer();
    change(document);
    return load_error(document.dump());
  };
  EXPECT_THAT(error([](json& d) { d["model"]["vocab"]["x y"] = 4294967297; }),
              HasSubstr("token ids"));
  EXPECT_THAT(error([](json& d) { d["model"]["vocab"]["x y"] = -1; }), HasSubstr("token ids"));
  EXPECT_THAT(error([](json& d) { d["model"]["vocab"]["x y"] = 2000000000; }),
              HasSubstr("got 2000000000 for 'x y'"));
  EXPECT_THAT(error([](json& d) { d["model"]["merges"].push_back("q z"); }),
              HasSubstr("merge 4 with 'qz'"));
  EXPECT_THAT(error([](json& d) { d["model"]["merges"].push_back("a b c"); }),
              HasSubstr("merge 4, got \"a b c\""));
  EXPECT_THAT(error([](json& d) { d["model"]["unk_token"] = "[UNK]"; }), HasSubstr("'[UNK]'"));
  EXPECT_THAT(error([](json& d) { d["model"]["dropout"] = 0.1; }), HasSubstr("dropout"));
  EXPECT_THAT(error([](json& d) { d["model"]["type"] = "Unigram"; }),
              HasSubstr("unsupported model 'Unigram'"));
  EXPECT_THAT(error([](json& d) {
                d["pre_tokenizer"] = {{"type", "Metaspace"}};
              }),
              HasSubstr("unsupported pre_tokenizer 'Metaspace'"));
  EXPECT_THAT(error([](json& d) {
                d["normalizer"] = {{"type", "BertNormalizer"}};
              }),
              HasSubstr("unsupported normalizer 'BertNormalizer'"));
  EXPECT_THAT(error([](json& d) {
                d["decoder"] = {{"type", "WordPiece"}};
              }),
              HasSubstr("unsupported decoder 'WordPiece'"));
  EXPECT_THAT(error([](json& d) {
                d["post_processor"] = {{"type", "BertProcessing"}};
              }),
              HasSubstr("unsupported post_processor 'BertProcessing'"));
  EXPECT_THAT(error([](json& d) {
                d["post_processor"] = {
                    {"type", "TemplateProcessing"},
                    {"single", {{{"SpecialToken", {{"id", "x"}}}}, {{"Sequence", {{"id", "A"}}}}}},
                    {"special_tokens", {{"x", {{"ids", {7000}}}}}}};
              }),
              HasSubstr("got 7000"));
  std::string nested = small_tokenizer().dump();
  const std::string null_normalizer = "\"normalizer\":null";
  std::string sequences;
  for (int depth = 0; depth < 100000; ++depth) {
    sequences += R"({"type":"Sequence","normalizers":[)";
  }
  nested.replace(nested.find(null_normalizer), null_normalizer.size(),
                 "\"normalizer\":" + sequences);
  EXPECT_THAT(load_error(nested), HasSubstr("at most 64 nested levels"));
}

TEST(Tokenizer, WrongTypesNameTheKeyAndWhatWasExpected) {
  const std::pair<std::string, std::string> cases[] = {
      {"{}", "expected the key \"model\", got an object with none"},
      {"[]", "expected a tokenizer as a JSON object, got array"},
      {"5", "expected a tokenizer as a JSON object, got number"},
      {"{", "expected JSON, got a parse error at line 1, column 2: "},
      {R"({"model": 5})", "expected an object with \"type\", got number"},
      {R"({"model": {"type": 5}})", "expected a string in \"type\", got number"},
      {R"({"model": {}})", "expected the key \"vocab\", got an object with none"},
      {R"({"model": {"vocab": []}})", "expected an object in \"vocab\", got array"},
      {R"({"model": {"vocab": {}, "merges": {}}})", "expected an array in \"merges\", got object"},
      {R"({"model": {"vocab": {}, "merges": [[1, 2]]}})",
       "expected two tokens in merge 0, got [1,2]"},
      {R"({"model": {"ignore_merges": "no"}})",
       "expected true or false in \"ignore_merges\", got string"},
      {R"({"pre_tokenizer": [], "model": {}})", "expected an object with \"type\", got array"},
      {R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": 1}, "model": {}})",
       "expected an array in \"pretokenizers\", got number"},
      {R"({"pre_tokenizer": {"type": "Split", "pattern": "x", "behavior": "Removed"}, "model": {}})",
       "expected an object with \"String\", got string"}};
  for (const auto& [content, expected] : cases) {
    const std::string error = load_error(content);
    EXPECT_THAT(error, HasSubstr("tokenizer.json: " + expected)) << content;
    EXPECT_THAT(error, ::testing::Not(HasSubstr("json.exception"))) << content;
  }
  json document = small_tokenizer();
  document["added_tokens"] = {{{"content", 5}}};
  EXPECT_THAT(load_error(document.dump()),
              HasSubstr("expected a string in \"content\", got number"));
  document["added_tokens"] = 5;
  EXPECT_THAT(load_error(document.dump()), HasSubstr("an array in \"added_tokens\", got number"));
}

TEST(Tokenizer, WrongTypesInTheConfigurationToo) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("tokenizer.json", small_tokenizer().dump());
  for (const auto& [content, expected] : std::vector<std::pair<std::string, std::string>>{
           {"[]", "expected the tokenizer's configuration as a JSON object, got array"},
           {R"({"eos_token": 5})", "expected a string in \"eos_token\", got number"},
           {R"({"eos_token": {}})", "expected the key \"content\", got an object with none"}}) {
    directory.write("tokenizer_config.json", content);
    EXPECT_THAT(error_of([&] {
                  load_tokenizer({"huggingface", path});
                }),
                HasSubstr("tokenizer_config.json: " + expected));
  }
}

TEST(Tokenizer, Gpt2FilesByDirectoryAndByPrefix) {
  const TemporaryDirectory directory;
  json vocab = small_tokenizer()["model"]["vocab"];
  vocab["<|endoftext|>"] = 261;
  const std::string merges = "#version: 0.2\nh e\nl l\r\nhe ll\n\u0120 he\n";
  directory.write("vocab.json", vocab.dump());
  directory.write("merges.txt", merges);
  const std::string prefixed = directory.write("x_encoder.json", vocab.dump());
  directory.write("x_vocab.bpe", merges);
  for (const std::string& path :
       {directory.path(), prefixed, directory.file("x_vocab.bpe"), directory.file("merges.txt")}) {
    const auto tokenizer = load_tokenizer({"gpt2", path});
    EXPECT_THAT(tokenizer->encode("hello<|endoftext|> hello"),
                ElementsAre(kHell, 'o', 261, ' ', kHell, 'o'));
    EXPECT_THAT(tokenizer->encode_document("a"), ElementsAre('a'));
    EXPECT_EQ(tokenizer->eos_id(), 261);
    EXPECT_EQ(tokenizer->exported_files().at(1).exported_name, "merges.txt");
  }
  directory.write("x_vocab.bpe", "h e\nhe\n");
  EXPECT_THAT(error_of([&] {
                load_tokenizer({"gpt2", prefixed});
              }),
              HasSubstr("x_vocab.bpe: expected two tokens in line 2, got 'he'"));
  EXPECT_THAT(error_of([&] {
                load_tokenizer({"huggingface", directory.path()});
              }),
              HasSubstr("try kind: gpt2"));
}

TEST(Tokenizer, SentencepieceRefusesOtherFiles) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("tokenizer.model", "not a model");
  EXPECT_THAT(error_of([&] {
                load_tokenizer({"sentencepiece", path});
              }),
              HasSubstr(path + ": expected a sentencepiece model"));
}

// A message with one piece, as protobuf writes it.
std::string unigram_piece(const std::string& text, float score) {
  std::string piece = "\x0A" + std::string(1, static_cast<char>(text.size())) + text + "\x15";
  piece.append(reinterpret_cast<const char*>(&score), sizeof(score));
  return "\x0A" + std::string(1, static_cast<char>(piece.size())) + piece;
}

std::vector<std::string> segments(const SentencepieceUnigram& model, std::string_view text) {
  std::vector<std::string> result;
  for (const auto& piece : model.encode(text)) {
    result.emplace_back(piece.text);
  }
  return result;
}

TEST(SentencepieceUnigram, HighestSumWinsAndTheFirstOfTies) {
  const SentencepieceUnigram model(unigram_piece("a", -2) + unigram_piece("b", -2) +
                                   unigram_piece("ab", -3) + unigram_piece("ba", -3) +
                                   unigram_piece("abab", -7));
  ASSERT_TRUE(model.is_unigram());
  EXPECT_THAT(segments(model, "abab"), ElementsAre("ab", "ab"));
  // a|ba and ab|a tie at -5: the one found first, whose last piece begins first, stays.
  EXPECT_THAT(segments(model, "aba"), ElementsAre("a", "ba"));
  EXPECT_THAT(segments(model, "a\u00e9b"), ElementsAre("a", "\u00e9", "b"));
  EXPECT_THAT(segments(model, ""), IsEmpty());
  // Beyond the resets of the sum.
  EXPECT_EQ(segments(model, std::string(200000, 'a')).size(), 200000u);
}

TEST(SentencepieceUnigram, TruncatedModelsAreErrors) {
  const std::string model = unigram_piece("ab", -3);
  for (size_t size = 1; size < model.size(); ++size) {
    EXPECT_THAT(error_of([&] { SentencepieceUnigram broken(model.substr(0, size)); }),
                HasSubstr("truncated"))
        << size;
  }
  EXPECT_THAT(error_of([] { SentencepieceUnigram broken(std::string(11, '\xFF')); }),
              HasSubstr("over 64 bits"));
}

}  // namespace
}  // namespace narrowgauge::data
