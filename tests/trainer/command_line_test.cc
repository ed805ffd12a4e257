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

TEST(ParsePlan, TakesEveryOption) {
  const PlanOptions options =
      parse_plan(Arguments{"c.yaml", "a.b=1", "--gpu", "H200", "--gpus", "8", "--nodes=4",
                           "--peak-tflops", "100", "--memory-gib=24", "--json"});
  EXPECT_EQ(options.config_path, "c.yaml");
  EXPECT_EQ(options.overrides, Arguments{"a.b=1"});
  EXPECT_EQ(options.gpu, "H200");
  EXPECT_EQ(options.gpus, 8);
  EXPECT_EQ(options.nodes, 4);
  EXPECT_EQ(options.peak_tflops, 100);
  EXPECT_EQ(options.memory_gib, 24);
  EXPECT_TRUE(options.json);
  const PlanOptions plain = parse_plan(Arguments{"c.yaml"});
  EXPECT_EQ(plain.gpu, PlanOptions{}.gpu);
  EXPECT_EQ(plain.gpus, PlanOptions{}.gpus);
  EXPECT_EQ(plain.nodes, PlanOptions{}.nodes);
  EXPECT_EQ(plain.peak_tflops, PlanOptions{}.peak_tflops);
  EXPECT_EQ(plain.memory_gib, PlanOptions{}.memory_gib);
  EXPECT_FALSE(plain.json);
}

TEST(ParseReport, TakesRunsAndOptions) {
  const ReportOptions options = parse_report(Arguments{"a", "--output", "c.html", "b,c"});
  EXPECT_EQ(options.runs, (Arguments{"a", "b,c"}));
  EXPECT_EQ(options.output, "c.html");
  EXPECT_FALSE(options.csv);
  EXPECT_TRUE(parse_report(Arguments{"a", "--csv"}).csv);
  EXPECT_THROW(parse_report(Arguments{}), UsageError);
  EXPECT_THROW(parse_report(Arguments{"a", "--csv", "--output", "x"}), UsageError);
}

TEST(ParseBench, TakesEveryOption) {
  const BenchOptions options = parse_bench(
      Arguments{"c.yaml", "a.b=1", "--modes", "bf16,qat.8da4w", "--steps", "5", "--warmup=0",
                "--rounds", "2", "--json", "a.json", "--compare", "b.json", "--fail-below", "0.9"});
  EXPECT_EQ(options.config_path, "c.yaml");
  EXPECT_EQ(options.overrides, Arguments{"a.b=1"});
  EXPECT_EQ(options.modes, (Arguments{"bf16", "qat.8da4w"}));
  EXPECT_EQ(options.steps, 5);
  EXPECT_EQ(options.warmup, 0);
  EXPECT_EQ(options.rounds, 2);
  EXPECT_EQ(options.json, "a.json");
  EXPECT_EQ(options.compare, "b.json");
  EXPECT_EQ(options.fail_below, 0.9);
  const BenchOptions plain = parse_bench(Arguments{"c.yaml"});
  EXPECT_EQ(plain.modes, BenchOptions{}.modes);
  EXPECT_EQ(plain.steps, BenchOptions{}.steps);
  EXPECT_EQ(plain.warmup, BenchOptions{}.warmup);
  EXPECT_EQ(plain.rounds, BenchOptions{}.rounds);
  EXPECT_EQ(plain.fail_below, BenchOptions{}.fail_below);
  EXPECT_THROW(parse_bench(Arguments{"c.yaml", "--fail-below", "1"}), UsageError);
  EXPECT_THROW(parse_bench(Arguments{"--steps", "5"}), UsageError);
}

TEST(ParseConvergence, TakesEveryOption) {
  const ConvergenceOptions options = parse_convergence(
      Arguments{"float8", "a.b=1", "--config", "c.yaml", "--output", "o", "--variant", "bf16",
                "--variant", "70 % sparse, then dense", "--seeds", "2", "--jobs", "4", "--threads",
                "3", "--tolerance", "1.5", "--table-only"});
  EXPECT_EQ(options.family, "float8");
  EXPECT_EQ(options.overrides, Arguments{"a.b=1"});
  EXPECT_EQ(options.config_path, "c.yaml");
  EXPECT_EQ(options.output, "o");
  EXPECT_EQ(options.variants, (Arguments{"bf16", "70 % sparse, then dense"}));
  EXPECT_EQ(options.seeds, 2);
  EXPECT_EQ(options.jobs, 4);
  EXPECT_EQ(options.threads, 3);
  EXPECT_EQ(options.tolerance_percent, 1.5);
  EXPECT_TRUE(options.table_only);
  const ConvergenceOptions plain = parse_convergence(Arguments{"qat"});
  EXPECT_EQ(plain.config_path, "configs/convergence/llama_3m.yaml");
  EXPECT_EQ(plain.variants, ConvergenceOptions{}.variants);
  EXPECT_EQ(plain.seeds, ConvergenceOptions{}.seeds);
  EXPECT_EQ(plain.tolerance_percent, ConvergenceOptions{}.tolerance_percent);
  EXPECT_THROW(parse_convergence(Arguments{}), UsageError);
}

TEST(ParseGenerate, TakesEveryOption) {
  const GenerateOptions options = parse_generate(
      Arguments{"--model", "m", "--tokenizer=t.json", "--prompt", "a, b = -1", "--chat-template",
                "chatml", "--max-new-tokens", "7", "--temperature=0", "--top-p", "0.5", "--seed",
                "3", "--device", "cpu", "--json"});
  EXPECT_EQ(options.model, "m");
  EXPECT_EQ(options.tokenizer, "t.json");
  EXPECT_EQ(options.prompt, "a, b = -1");
  EXPECT_EQ(options.chat_template, "chatml");
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
  EXPECT_EQ(generate.chat_template, "");
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
  EXPECT_EQ(options.data.at("perplexity"), (Arguments{"a.txt", "b/*.txt"}));
  EXPECT_EQ(options.tasks, Arguments{"perplexity"});
  EXPECT_EQ(options.seq_len, 64);
}

TEST(ParseEval, GivesEachTaskItsFiles) {
  const EvalOptions options = parse_eval(Arguments{
      "--model", "m", "--tasks", "piqa,perplexity", "--data",
      "perplexity=a=b.txt,piqa=p.jsonl,perplexity=c.txt", "--compare", "x,y", "--limit", "7"});
  EXPECT_EQ(options.data.at("perplexity"), (Arguments{"a=b.txt", "c.txt"}));
  EXPECT_EQ(options.data.at("piqa"), Arguments{"p.jsonl"});
  EXPECT_EQ(options.compare, (Arguments{"x", "y"}));
  EXPECT_EQ(options.limit, 7);
}

TEST(ParseQuantize, TakesEveryOption) {
  const QuantizeOptions options = parse_quantize(Arguments{"--model",
                                                           "m",
                                                           "--output",
                                                           "o",
                                                           "--scheme",
                                                           "intx-weight-only",
                                                           "--bits",
                                                           "3",
                                                           "--group-size=64",
                                                           "--mapping",
                                                           "asymmetric",
                                                           "--method",
                                                           "gptq",
                                                           "--act-order",
                                                           "--calibration",
                                                           "a,b.txt",
                                                           "--samples",
                                                           "9",
                                                           "--seq-len",
                                                           "32",
                                                           "--alpha",
                                                           "0.6",
                                                           "--min-sqnr-db",
                                                           "20.5",
                                                           "--include-head",
                                                           "--tokenizer",
                                                           "bytes"});
  EXPECT_EQ(options.bits, 3);
  EXPECT_EQ(options.group_size, 64);
  EXPECT_EQ(options.mapping, "asymmetric");
  EXPECT_EQ(options.method, "gptq");
  EXPECT_TRUE(options.act_order);
  EXPECT_EQ(options.calibration, (Arguments{"a", "b.txt"}));
  EXPECT_EQ(options.samples, 9);
  EXPECT_EQ(options.seq_len, 32);
  EXPECT_EQ(options.alpha, 0.6);
  EXPECT_EQ(options.min_sqnr_db, 20.5);
  EXPECT_TRUE(options.include_head);
  EXPECT_EQ(options.tokenizer, "bytes");
  const QuantizeOptions defaults =
      parse_quantize(Arguments{"--model", "m", "--output", "o", "--scheme", "mxfp4"});
  EXPECT_FALSE(defaults.bits || defaults.group_size || defaults.mapping);
  EXPECT_EQ(defaults.method, QuantizeOptions{}.method);
  EXPECT_EQ(defaults.samples, QuantizeOptions{}.samples);
  EXPECT_EQ(defaults.alpha, QuantizeOptions{}.alpha);
  EXPECT_EQ(defaults.min_sqnr_db, QuantizeOptions{}.min_sqnr_db);
}

TEST(ParseImport, TakesSourceAndOutput) {
  const ImportOptions options = parse_import(Arguments{"stories.bin", "--output", "out"});
  EXPECT_EQ(options.from, "stories.bin");
  EXPECT_EQ(options.output, "out");
}

TEST(ParseTokenizer, TakesEveryOption) {
  const TokenizerTrainOptions train = parse_tokenizer_train(
      Arguments{"a,b.txt", "--output", "t.json", "--vocab-size=900", "--pre-tokenizer", "gpt2",
                "--special-token", "<a>", "--special-token=<b>,", "--field", "body",
                "--invalid-utf8", "replace", "--threads", "2", "dir"});
  EXPECT_EQ(train.sources, (Arguments{"a,b.txt", "dir"}));
  EXPECT_EQ(train.output, "t.json");
  EXPECT_EQ(train.vocab_size, 900);
  EXPECT_EQ(train.pre_tokenizer, "gpt2");
  EXPECT_EQ(train.special_tokens, (Arguments{"<a>", "<b>,"}));
  EXPECT_EQ(train.text_field, "body");
  EXPECT_TRUE(train.replace_invalid_utf8);
  EXPECT_EQ(train.num_threads, 2);
  const TokenizerEncodeOptions encode = parse_tokenizer_encode(Arguments{
      "--tokenizer", "t", "--kind", "gpt2", "--json", "--document", "--invalid-utf8=replace"});
  EXPECT_EQ(encode.tokenizer, "t");
  EXPECT_EQ(encode.kind, "gpt2");
  EXPECT_TRUE(encode.json && encode.document && encode.replace_invalid_utf8);
  const TokenizerDecodeOptions decode = parse_tokenizer_decode(Arguments{"--tokenizer=bytes"});
  EXPECT_EQ(decode.tokenizer, "bytes");
  EXPECT_EQ(decode.kind, "");
  EXPECT_FALSE(decode.json);
}

TEST(ParseData, TakesEveryOption) {
  const DataPrepareOptions prepare = parse_data_prepare(
      Arguments{"--tokenizer", "t.json", "--field", "body", "--chat-template", "chatml",
                "--train-on-input", "--seq-len", "128", "--invalid-utf8", "replace",
                "--validation-fraction", "0.5", "--cache-dir", "c", "--threads", "3", "a", "b"});
  EXPECT_EQ(prepare.tokenizer, "t.json");
  EXPECT_EQ(prepare.text_field, "body");
  EXPECT_EQ(prepare.chat_template, "chatml");
  EXPECT_TRUE(prepare.train_on_input);
  EXPECT_EQ(prepare.seq_len, 128);
  EXPECT_TRUE(prepare.replace_invalid_utf8);
  EXPECT_EQ(prepare.validation_fraction, 0.5);
  EXPECT_EQ(prepare.cache_dir, "c");
  EXPECT_EQ(prepare.num_threads, 3);
  EXPECT_EQ(prepare.sources, (Arguments{"a", "b"}));
  const DataInspectOptions inspect = parse_data_inspect(
      Arguments{"c", "--tokenizer", "t", "--window", "10", "--windows", "0", "--verify"});
  EXPECT_EQ(inspect.cache, "c");
  EXPECT_EQ(inspect.tokenizer, "t");
  EXPECT_EQ(inspect.window, 10);
  EXPECT_EQ(inspect.num_windows, 0);
  EXPECT_TRUE(inspect.verify);
}

TEST(Parse, DefaultsOfTokenizerAndDataAreThoseOfTheStructs) {
  const TokenizerTrainOptions train =
      parse_tokenizer_train(Arguments{"--output", "o", "--vocab-size", "300", "x"});
  EXPECT_EQ(train.pre_tokenizer, TokenizerTrainOptions{}.pre_tokenizer);
  EXPECT_EQ(train.special_tokens, TokenizerTrainOptions{}.special_tokens);
  EXPECT_EQ(train.text_field, TokenizerTrainOptions{}.text_field);
  EXPECT_EQ(train.num_threads, TokenizerTrainOptions{}.num_threads);
  EXPECT_FALSE(train.replace_invalid_utf8);
  const DataPrepareOptions prepare = parse_data_prepare(Arguments{"x"});
  EXPECT_EQ(prepare.tokenizer, DataPrepareOptions{}.tokenizer);
  EXPECT_EQ(prepare.text_field, DataPrepareOptions{}.text_field);
  EXPECT_EQ(prepare.chat_template, "");
  EXPECT_FALSE(prepare.train_on_input);
  EXPECT_EQ(prepare.seq_len, 0);
  EXPECT_EQ(prepare.validation_fraction, DataPrepareOptions{}.validation_fraction);
  EXPECT_EQ(prepare.cache_dir, "");
  EXPECT_EQ(prepare.num_threads, DataPrepareOptions{}.num_threads);
  const DataInspectOptions inspect = parse_data_inspect(Arguments{"x"});
  EXPECT_EQ(inspect.tokenizer, "");
  EXPECT_EQ(inspect.window, DataInspectOptions{}.window);
  EXPECT_EQ(inspect.num_windows, DataInspectOptions{}.num_windows);
  EXPECT_FALSE(inspect.verify);
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
  const auto quantize = [](const Arguments& a) { parse_quantize(a); };
  const auto exported = [](const Arguments& a) { parse_export(a); };
  const auto imported = [](const Arguments& a) { parse_import(a); };
  const auto tokenizer_train = [](const Arguments& a) { parse_tokenizer_train(a); };
  const auto encode = [](const Arguments& a) { parse_tokenizer_encode(a); };
  const auto decode = [](const Arguments& a) { parse_tokenizer_decode(a); };
  const auto prepare = [](const Arguments& a) { parse_data_prepare(a); };
  const auto inspect = [](const Arguments& a) { parse_data_inspect(a); };
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
       "expected --data LIST: files, globs or directories of a task's data, separated by commas; "
       "with "
       "several tasks each as TASK=FILE"},
      {eval,
       {"--model", "m", "--data", "d", "--tasks", "mmlu"},
       "--tasks: expected some of perplexity, hellaswag, piqa and lambada, got \"mmlu\""},
      {eval,
       {"--model", "m", "--data", "d", "--tasks", "piqa,lambada"},
       "--data: expected TASK=FILE for each of several tasks, got \"d\""},
      {eval,
       {"--model", "m", "--data", "piqa=d", "--tasks", "piqa,lambada"},
       "--data: expected a file for lambada, got \"piqa=d\"; write lambada=FILE"},
      {eval,
       {"--model", "m", "--data", "d,e", "--tasks", "piqa"},
       "--data: expected one file for piqa, got \"d,e\""},
      {eval,
       {"--model", "m", "--data", "d", "--tasks", "piqa", "--compare", "n"},
       "--compare: expected a text to compare on, got \"n\"; add --data perplexity=FILE"},
      {quantize,
       {"--model", "m", "--output", "o"},
       "expected --scheme NAME: how weights are written (docs/QUANTIZATION.md lists them), or "
       "auto"},
      {quantize,
       {"--model", "m", "--output", "o", "--scheme", "mxfp4", "--method", "best"},
       "--method: expected one of rtn, hqq, gptq, awq, smoothquant, got \"best\""},
      {quantize,
       {"--model", "m", "--output", "o", "--scheme", "s", "--method", "gptq"},
       "--calibration: expected text for --method gptq, got none; name files of text like what the "
       "model will read"},
      {quantize,
       {"--model", "m", "--output", "o", "--scheme", "auto"},
       "--calibration: expected text for --scheme auto, got none; name files of text like what the "
       "model will read"},
      {quantize,
       {"--model", "m", "--output", "o", "--scheme", "auto", "--calibration", "c", "--method",
        "hqq"},
       "--method: expected rtn with --scheme auto, got \"hqq\"; its errors are those of rounding"},
      {exported, {}, "expected MODEL: run directory, quantized model, or Hugging Face directory"},
      {exported, {"a", "b"}, "unexpected argument \"b\""},
      {exported,
       {"r", "--dtype", "fp8"},
       "--dtype: expected one of auto, float32, bfloat16, float16, got \"fp8\""},
      {imported, {"a"}, "expected --output DIR: where to write"},
      {tokenizer_train,
       {"--output", "o", "--vocab-size", "300"},
       "expected SOURCE: files, directories and globs of text, .jsonl and .parquet"},
      {tokenizer_train,
       {"--output", "o", "x"},
       "expected --vocab-size N: entries, the 256 bytes and special tokens included"},
      {tokenizer_train,
       {"--output", "o", "--vocab-size", "1e3", "x"},
       "--vocab-size: expected an integer of at least 1, got \"1e3\"; write 1000"},
      {tokenizer_train,
       {"--output", "o", "--vocab-size", "300", "--threads", "-1", "x"},
       "--threads: expected an integer of at least 0, got \"-1\""},
      {tokenizer_train,
       {"--output", "o", "--vocab-size", "300", "--pre-tokenizer", "bert", "x"},
       "--pre-tokenizer: expected one of llama3, gpt2, got \"bert\""},
      {tokenizer_train,
       {"--output", "o", "--vocab-siz", "300", "x"},
       "unknown option --vocab-siz; did you mean --vocab-size?"},
      {encode, {}, "expected --tokenizer PATH: bytes, or a tokenizer file or directory"},
      {encode, {"--tokenizer", "t", "text"}, "unexpected argument \"text\""},
      {encode, {"--tokenizer", "none"}, "--tokenizer: expected a tokenizer of text, got \"none\""},
      {encode,
       {"--tokenizer", "t", "--kind", "gpt3"},
       "--kind: expected one of huggingface, gpt2, sentencepiece, got \"gpt3\""},
      {encode,
       {"--tokenizer", "t", "--invalid-utf8", "ignore"},
       "--invalid-utf8: expected one of error, replace, got \"ignore\""},
      {decode, {"--tokenizer", "t", "x"}, "unexpected argument \"x\""},
      {prepare, {}, "expected SOURCE: files, directories and globs of text, .jsonl and .parquet"},
      {prepare, {"x", "--unknown"}, "unknown option --unknown"},
      {prepare,
       {"x", "--threads", "many"},
       "--threads: expected an integer of at least 0, got \"many\""},
      {prepare,
       {"x", "--threads", "5000000000"},
       "--threads: expected at most 4096, got \"5000000000\""},
      {prepare,
       {"x", "--validation-fraction", "1"},
       "--validation-fraction: expected a number of at least 0, below 1, got \"1\""},
      {prepare,
       {"x", "--tokenizer", "none"},
       "--tokenizer: expected a tokenizer of text, got \"none\""},
      {inspect, {}, "expected CACHE: file that prepare wrote, or .bin"},
      {inspect, {"a", "b"}, "unexpected argument \"b\""},
      {inspect, {"a", "--window", "0"}, "--window: expected an integer of at least 1, got \"0\""},
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
  for (const char* command :
       {"train", "validate", "generate", "eval", "quantize", "export", "import", "tokenizer train",
        "tokenizer encode", "tokenizer decode", "data prepare", "data inspect"}) {
    const std::string help = command_help(command);
    EXPECT_NE(help.find("usage: narrowgauge " + std::string(command) + " "), std::string::npos);
    EXPECT_NE(help.find("narrowgauge " + std::string(command) + " ", help.find("examples:\n")),
              std::string::npos);
    EXPECT_EQ(help.find("(default: "), std::string::npos);
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
