#include "report/chart.h"

#include <gtest/gtest.h>

#include <cmath>

#include "report/page.h"

namespace narrowgauge::report {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

Series line_of(const std::vector<double>& values) {
  Series series;
  for (size_t i = 0; i < values.size(); ++i) {
    series.add(static_cast<int64_t>(i) + 1, values[i]);
  }
  return series;
}

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
    ++found;
  }
  return found;
}

std::string chart_of(const Series& series) {
  return svg_chart({.id = "c", .title = "title", .unit = "", .lines = {{"line", &series}}});
}

TEST(Chart, DrawsALineAndSaysWhatItShows) {
  const std::string svg = chart_of(line_of({3, 2, 1, 1.5}));
  EXPECT_EQ(count(svg, "class=\"line\""), 1u);
  EXPECT_EQ(count(svg, "class=\"band\""), 0u);
  EXPECT_NE(svg.find("<title id=\"c-t\">title</title>"), std::string::npos);
  EXPECT_NE(svg.find("line: 1.5 at step 4, least 1, greatest 3. "), std::string::npos);
  EXPECT_NE(svg.find("role=\"img\""), std::string::npos);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
}

TEST(Chart, IsEmptyWithoutAValue) {
  EXPECT_EQ(chart_of(Series()), "");
  EXPECT_EQ(chart_of(line_of({kNaN})), "");
  EXPECT_EQ(svg_chart({.id = "c", .title = "t", .unit = "", .lines = {}}), "");
}

TEST(Chart, ManyValuesOfAPixelBecomeABand) {
  Series series;
  for (int64_t step = 1; step <= 1'000'000; ++step) {
    series.add(step, step == 500'000 ? 9.0 : static_cast<double>(step % 7));
  }
  const std::string svg = chart_of(series);
  EXPECT_EQ(count(svg, "class=\"band\""), 1u);
  EXPECT_LT(svg.size(), 60'000u);
  EXPECT_NE(svg.find("greatest 9"), std::string::npos);
}

TEST(Chart, OddValuesGiveFiniteCoordinates) {
  for (const auto& values : std::vector<std::vector<double>>{{0},
                                                             {5},
                                                             {-1, -1},
                                                             {1e300, -1e300},
                                                             {1e-300, 1e-299},
                                                             {5e-324},
                                                             {0, 1e308},
                                                             {1, 1 + 1e-15},
                                                             {1e-8, 1, 1e8},
                                                             {2, kNaN, 3}}) {
    const std::string svg = chart_of(line_of(values));
    ASSERT_NE(svg, "");
    const size_t drawing = svg.find("</desc>");
    EXPECT_EQ(svg.find("nan", drawing), std::string::npos) << svg;
    EXPECT_EQ(svg.find("inf", drawing), std::string::npos) << svg;
  }
}

TEST(Chart, MarksStepsWithoutAFiniteValue) {
  const std::string svg = chart_of(line_of({1, kNaN, 2, kNaN}));
  EXPECT_EQ(count(svg, "class=\"bad\""), 2u);
  EXPECT_NE(svg.find("not finite at step 4"), std::string::npos);
  EXPECT_NE(svg.find("2 not finite"), std::string::npos);
}

TEST(Chart, WideRangesGetALogarithmicAxis) {
  const std::string svg = chart_of(line_of({1000, 100, 10, 1}));
  EXPECT_NE(svg.find(">1</text>"), std::string::npos);
  EXPECT_NE(svg.find(">1000</text>"), std::string::npos);
}

TEST(Chart, TheStartMayLeaveSoThatTheRestIsSeen) {
  std::vector<double> values(100, 2.0);
  values[0] = 1000;
  const Series series = line_of(values);
  const Chart chart = {.id = "c",
                       .title = "t",
                       .unit = "",
                       .scale = 0.5,
                       .lets_start_leave = true,
                       .lines = {{"line", &series}}};
  const std::string svg = svg_chart(chart);
  EXPECT_NE(svg.find("greatest 500"), std::string::npos);  // scaled, and told all the same
  EXPECT_NE(svg.find(">1</text>"), std::string::npos);
  EXPECT_EQ(svg.find(">500</text>"), std::string::npos);
}

TEST(ShortNumber, IsShort) {
  EXPECT_EQ(short_number(0), "0");
  EXPECT_EQ(short_number(3.51812), "3.518");
  EXPECT_EQ(short_number(0.0003), "0.0003");
  EXPECT_EQ(short_number(3e-5), "3e-05");
  EXPECT_EQ(short_number(9999), "9999");
  EXPECT_EQ(short_number(43400), "43.4 k");
  EXPECT_EQ(short_number(999'999), "1 M");
  EXPECT_EQ(short_number(-1.5e9), "-1.5 G");
  EXPECT_EQ(short_number(kNaN), "not a number");
}

TEST(Page, EscapesWhatRunsSay) {
  RunLog run;
  run.name = "<script>alert(1)</script>";
  run.series["loss"] = line_of({1, 2});
  run.series["a<b"] = line_of({1, 2});
  run.samples = {{1, "<img src=x>", "&amp; \"'"}};
  run.settings = {{"job.run_dir", "<b>"}};
  const std::string html = render_page({run});
  EXPECT_EQ(html.find("<script"), std::string::npos);
  EXPECT_EQ(html.find("<img"), std::string::npos);
  EXPECT_NE(html.find("&lt;img src=x&gt;"), std::string::npos);
  EXPECT_NE(html.find("&amp;amp; &quot;&#39;"), std::string::npos);
  EXPECT_NE(html.find("&lt;b&gt;"), std::string::npos);
}

TEST(Page, NeedsNothingFromElsewhere) {
  RunLog run;
  run.series["loss"] = line_of({1, 2});
  const std::string html = render_page({run, run});
  for (const char* reach : {"http:", "https:", "url(h", "url(/", "@import", "src="}) {
    EXPECT_EQ(html.find(reach), std::string::npos) << reach;
  }
}

TEST(Page, ComparesRuns) {
  RunLog a, b;
  a.name = "bf16";
  b.name = "fp8";
  a.series["loss"] = line_of({3, 2});
  b.series["loss"] = line_of({3, 2.5});
  b.series["validation_loss"] = line_of({2.6});
  a.settings = {{"optimizer.lr", "0.1"}, {"training.steps", "2"}};
  b.settings = {{"optimizer.lr", "0.2"}, {"training.steps", "2"}};
  const std::string html = render_page({a, b});
  EXPECT_NE(html.find("Settings that differ"), std::string::npos);
  EXPECT_NE(html.find("optimizer.lr"), std::string::npos);
  EXPECT_EQ(html.find("training.steps"), std::string::npos);
  EXPECT_NE(html.find("fp8, held-out (marks)"), std::string::npos);
}

TEST(Page, ShowsOtherMetricsByTheirLastName) {
  RunLog run;
  for (int i = 0; i < 40; ++i) {
    run.series["float8/layers." + std::to_string(i) + "/saturated"] =
        line_of({static_cast<double>(i), 0});
  }
  const std::vector<RunLog> runs = {run};
  const auto charts = choose_charts(runs);
  const Chart& chart = charts.back();
  EXPECT_EQ(chart.title, "float8 saturated");
  EXPECT_EQ(chart.unit, "the 6 highest of 40");
  ASSERT_EQ(chart.lines.size(), 6u);
  EXPECT_EQ(chart.lines.front().name, "layers.39");
}

TEST(Page, TellsWhatIsWrongWithALog) {
  RunLog run;
  run.series["loss"] = line_of({1, kNaN});
  run.num_lines = 2;
  run.num_bad_lines = 3;
  run.num_repeated = 4;
  const std::string html = render_page({run});
  EXPECT_NE(html.find("loss was not finite 1 time, first at step 2"), std::string::npos);
  EXPECT_NE(html.find("3 lines of metrics.jsonl could not be read"), std::string::npos);
  EXPECT_NE(html.find("4 steps came again in the log"), std::string::npos);
  EXPECT_NE(render_page({RunLog()}).find("nothing was logged yet"), std::string::npos);
}

}  // namespace
}  // namespace narrowgauge::report
