#include "data/source_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/data/temporary_directory.h"

namespace narrowgauge::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ExpandPaths : public ::testing::Test {
 protected:
  ExpandPaths() {
    for (const char* name : {"a.txt", "b.md", "c.bin", ".hidden.txt", "x/d.py", "x/y/e.py",
                             "x/y/f.txt", "x/.git/g.txt", "odd[1].txt"}) {
      directory_.write(name, name);
    }
  }

  // Paths relative to the directory, of patterns relative to it.
  std::vector<std::string> expand(std::vector<std::string> patterns) const {
    for (auto& pattern : patterns) pattern = directory_.file(pattern);
    auto paths = expand_paths(patterns);
    for (auto& path : paths) path = path.substr(directory_.path().size() + 1);
    return paths;
  }

  TemporaryDirectory directory_;
};

TEST_F(ExpandPaths, TakesAFileWhateverItsName) {
  EXPECT_THAT(expand({"c.bin"}), ElementsAre("c.bin"));
  EXPECT_THAT(expand({".hidden.txt"}), ElementsAre(".hidden.txt"));
}

TEST_F(ExpandPaths, SearchesADirectoryForTextOnly) {
  EXPECT_THAT(expand({""}),
              ElementsAre("a.txt", "b.md", "odd[1].txt", "x/d.py", "x/y/e.py", "x/y/f.txt"));
}

TEST_F(ExpandPaths, MatchesGlobs) {
  EXPECT_THAT(expand({"*.txt"}), ElementsAre("a.txt", "odd[1].txt"));
  EXPECT_THAT(expand({"?.[bm]*"}), ElementsAre("b.md", "c.bin"));
  EXPECT_THAT(expand({"x/**/*.py"}), ElementsAre("x/d.py", "x/y/e.py"));
  EXPECT_THAT(expand({"**/*.py"}), ElementsAre("x/d.py", "x/y/e.py"));
  EXPECT_THAT(expand({"x/**"}), ElementsAre("x/d.py", "x/y/e.py", "x/y/f.txt"));
  EXPECT_THAT(expand({"**/**/y/*.txt"}), ElementsAre("x/y/f.txt"));
  EXPECT_THAT(expand({"*/y/*"}), ElementsAre("x/y/e.py", "x/y/f.txt"));
  EXPECT_THAT(expand({"x/.git/*"}), ElementsAre("x/.git/g.txt"));
}

TEST_F(ExpandPaths, ReadsAnExistingNameLiterally) {
  EXPECT_THAT(expand({"odd[1].txt"}), ElementsAre("odd[1].txt"));
}

TEST_F(ExpandPaths, SortsAndTakesEachFileOnce) {
  EXPECT_THAT(expand({"b.md", "a.txt", "./a.txt", "*.txt", "x/../a.txt"}),
              ElementsAre("a.txt", "b.md", "odd[1].txt"));
}

TEST_F(ExpandPaths, EndsInALoopOfLinks) {
  std::filesystem::create_directory_symlink(directory_.path(), directory_.file("x/loop"));
  std::filesystem::create_symlink(directory_.file("a.txt"), directory_.file("x/link.py"));
  EXPECT_THAT(expand({"x"}), ElementsAre("x/d.py", "x/link.py", "x/y/e.py", "x/y/f.txt"));
  EXPECT_THAT(expand({"x/**/*.py"}), ElementsAre("x/d.py", "x/link.py", "x/y/e.py"));
  // Named, a link is followed.
  EXPECT_THAT(expand({"x/loop/*.md"}), ElementsAre("x/loop/b.md"));
}

TEST_F(ExpandPaths, NamesThePatternThatMatchesNothing) {
  EXPECT_THAT(error_of([&] { expand({"a.txt", "*.rst"}); }), HasSubstr("/*.rst', which matches"));
  EXPECT_THAT(error_of([&] { expand({"missing.txt"}); }), HasSubstr("missing.txt"));
  EXPECT_THAT(error_of([&] { expand({"a.txt/*"}); }), HasSubstr("a.txt/*"));
  EXPECT_THAT(error_of([&] { expand({"x/.git/**/*.py"}); }), HasSubstr(".git"));
  std::filesystem::create_directory(directory_.file("empty"));
  EXPECT_THAT(error_of([&] { expand({"empty"}); }), HasSubstr("in directory"));
}

TEST_F(ExpandPaths, DescribesContentWithoutReadingIt) {
  const SourceFile before = describe_file(directory_.file("a.txt"));
  EXPECT_EQ(before.size_bytes, 5u);
  EXPECT_EQ(before.path, directory_.file("a.txt"));
  std::filesystem::last_write_time(
      directory_.file("a.txt"),
      std::filesystem::file_time_type::clock::now() + std::chrono::nanoseconds(1'000'000));
  EXPECT_NE(describe_file(directory_.file("a.txt")).modified_ns, before.modified_ns);
  EXPECT_THAT(error_of([&] { describe_file(directory_.file("x")); }), HasSubstr("regular file"));
  EXPECT_THAT(error_of([&] { describe_file(directory_.file("no")); }), HasSubstr("No such file"));
}

}  // namespace
}  // namespace narrowgauge::data
