#include "trainer/command_line.h"

#include <gtest/gtest.h>

#include <functional>

namespace narrowgauge::trainer {
namespace {

using Arguments = std::vector<std::string>;

TEST(ParseTrain, TakesAFileAndOverrides) {
  const TrainOptions options =
      parse_train(Arguments{"c.yaml", "training.steps=5", "data.train=[a.txt,b.txt]", "x.y=-1"});
  EXPECT_EQ(options.config_path, "c.yaml");
  EXPECT_EQ(options.overrides,
            (Arguments{"training.steps=5", "data.train=[a.txt,b.txt]", "x.y=-1"}));
  EXPECT_TRUE(parse_train(Arguments{"c.yaml"}).overrides.empty());
}

TEST(ParseValidate, TakesAWorldSizeAnywhere) {
  const ValidateOptions options = parse_validate(Arguments{"c.yaml", "--world-size", "8", "a.b=1"});
  EXPECT_EQ(options.world_size, 8);
  EXPECT_EQ(options.overrides, Arguments{"a.b=1"});
  EXPECT_EQ(parse_validate(Arguments{"c.yaml"}).world_size, std::nullopt);
}

TEST(ParseGenerate, TakesEveryOption) {
  const GenerateOptions options = parse_generate(Arguments{
      "--model", "m", "--tokenizer=t.json", "--prompt", "a, b = -1", "--max-new-tokens", "7",
      "--temperature=0", "--top-p", "0.5", "--seed", "3", "--device", "cpu", "--json"});
  EXPECT_EQ(options.model, "m");
  EXPECT_EQ(options.tokenizer, "t.json");
  EXPECT_EQ(options.prompt, "a, b = -1");
  EXPECT_EQ(options.max_new_tokens, 7);
  EXPECT_EQ(options.temperature, 0.0);
  EXPECT_EQ(options.top_p, 0.5);
  EXPECT_EQ(options.seed, 3);
  EXPECT_EQ(options.device, "cpu");
  EXPECT_TRUE(options.json);
}

// The defaults stand in the structs and, as text, in --help; both must be the same.
TEST(Parse, DefaultsAreThoseOfTheStructs) {
  const GenerateOptions generate = parse_generate(Arguments{"--model", "m"});
  EXPECT_EQ(generate.max_new_tokens, GenerateOptions{}.max_new_tokens);
  EXPECT_EQ(generate.temperature, GenerateOptions{}.temperature);
  EXPECT_EQ(generate.top_p, GenerateOptions{}.top_p);
  EXPECT_EQ(generate.seed, GenerateOptions{}.seed);
  EXPECT_EQ(generate.device, GenerateOptions{}.device);
  EXPECT_FALSE(generate.json);
  const EvalOptions eval = parse_eval(Arguments{"--model", "m", "--data", "d"});
  EXPECT_EQ(eval.tasks, EvalOptions{}.tasks);
  EXPECT_EQ(eval.seq_len, EvalOptions{}.seq_len);
  const ExportOptions exported = parse_export(Arguments{"run"});
  EXPECT_EQ(exported.dtype, ExportOptions{}.dtype);
  EXPECT_EQ(exported.step, ExportOptions{}.step);
  EXPECT_EQ(exported.output, "");
}

TEST(ParseEval, SplitsLists) {
  const EvalOptions options = parse_eval(Arguments{"--model", "m", "--data", "a.txt,b/*.txt",
                                                   "--tasks", "perplexity", "--seq-len=64"});
  EXPECT_EQ(options.data, (Arguments{"a.txt", "b/*.txt"}));
  EXPECT_EQ(options.tasks, Arguments{"perplexity"});
  EXPECT_EQ(options.seq_len, 64);
}

TEST(ParseImport, TakesSourceAndOutput) {
  const ImportOptions options = parse_import(Arguments{"stories.bin", "--output", "out"});
  EXPECT_EQ(options.from, "stories.bin");
  EXPECT_EQ(options.output, "out");
}

TEST(Parse, SaysWhatIsWrong) {
  struct Mistake {
    std::function<void(const Arguments&)> parse;
    Arguments arguments;
    std::string error;
  };
  const auto train = [](const Arguments& a) { parse_train(a); };
  const auto validate = [](const Arguments& a) { parse_validate(a); };
  const auto generate = [](const Arguments& a) { parse_generate(a); };
  const auto eval = [](const Arguments& a) { parse_eval(a); };
  const auto exported = [](const Arguments& a) { parse_export(a); };
  const auto imported = [](const Arguments& a) { parse_import(a); };
  const Mistake mistakes[] = {
      {train, {}, "expected CONFIG: YAML file"},
      {train, {""}, "expected CONFIG: YAML file"},
      {train,
       {"c.yaml", "--training.steps", "5"},
       "unknown option --training.steps; a key of the configuration is written "
       "training.steps=VALUE"},
      {train,
       {"c.yaml", "--training.steps=5"},
       "unknown option --training.steps; a key of the configuration is written "
       "training.steps=VALUE"},
      {validate,
       {"c.yaml", "--wrld-size", "5"},
       "unknown option --wrld-size; did you mean --world-size?"},
      {validate,
       {"c.yaml", "--world-size", "0"},
       "--world-size: expected an integer of at least 1, got \"0\""},
      {validate,
       {"c.yaml", "--world-size", "08"},
       "--world-size: expected an integer of at least 1, got \"08\"; write it without leading "
       "zeros"},
      {validate, {"c.yaml", "--world-size"}, "expected a value after --world-size, got nothing"},
      {generate,
       {"--prompt", "x"},
       "expected --model DIR: Hugging Face directory, or a run directory"},
      {generate, {"--model", "m", "x"}, "unexpected argument \"x\""},
      {generate, {"--model", "m", "-x"}, "unknown option -x"},
      {generate,
       {"--model", "m", "--temprature", "1"},
       "unknown option --temprature; did you mean --temperature?"},
      {generate,
       {"--model", "m", "--temperature", "-1"},
       "--temperature: expected a number of at least 0, got \"-1\""},
      {generate,
       {"--model", "m", "--top-p", "0"},
       "--top-p: expected a number above 0, at most 1.0, got \"0\""},
      {generate,
       {"--model", "m", "--top-p", "nan"},
       "--top-p: expected a number above 0, at most 1.0, got \"nan\""},
      {generate,
       {"--model", "m", "--max-new-tokens", "1e3"},
       "--max-new-tokens: expected an integer of at least 1, got \"1e3\"; write 1000"},
      {generate,
       {"--model", "m", "--device", "gpu"},
       "--device: expected one of auto, cpu, cuda, got \"gpu\""},
      {eval,
       {"--model", "m"},
       "expected --data LIST: text files, globs or directories, separated by commas"},
      {eval,
       {"--model", "m", "--data", "d", "--tasks", "mmlu"},
       "--tasks: expected perplexity, got \"mmlu\""},
      {exported, {}, "expected RUN: run directory"},
      {exported, {"a", "b"}, "unexpected argument \"b\""},
      {exported,
       {"r", "--dtype", "fp8"},
       "--dtype: expected one of float32, bfloat16, got \"fp8\""},
      {imported, {"a"}, "expected --output DIR: where to write"},
  };
  for (const auto& [parse, arguments, error] : mistakes) {
    try {
      parse(arguments);
      ADD_FAILURE() << "no error, expected: " << error;
    } catch (const UsageError& what) {
      EXPECT_EQ(what.what(), error);
    }
  }
}

TEST(CommandHelp, ListsEveryOptionAndAnExample) {
  for (const char* command : {"train", "validate", "generate", "eval", "export", "import"}) {
    const std::string help = command_help(command);
    EXPECT_NE(help.find("usage: narrowgauge " + std::string(command) + " "), std::string::npos);
    EXPECT_NE(help.find("examples:\n  narrowgauge " + std::string(command) + " "),
              std::string::npos);
  }
  EXPECT_NE(command_help("generate").find("--top-p P"), std::string::npos);
}

TEST(AsksForHelp, BeforeADoubleDash) {
  EXPECT_TRUE(asks_for_help(Arguments{"c.yaml", "--help"}));
  EXPECT_TRUE(asks_for_help(Arguments{"-h"}));
  EXPECT_FALSE(asks_for_help(Arguments{"--", "--help"}));
  EXPECT_FALSE(asks_for_help(Arguments{"c.yaml", "help"}));
}

}  // namespace
}  // namespace narrowgauge::trainer
