#include "report/page.h"

#include <algorithm>
#include <array>
#include <set>

#include "report/page_style.h"

namespace narrowgauge::report {
namespace {

constexpr size_t kMaxLines = kPaletteSize;
constexpr double kGiB = 1 << 30;

struct KnownMetric {
  const char* name;
  const char* title;
  const char* unit;
  double scale = 1;
};

constexpr KnownMetric kKnown[] = {{"loss", "Loss", "nats a token"},
                                  {"lr", "Learning rate", ""},
                                  {"grad_norm", "Gradient norm", "before clipping"},
                                  {"tokens_per_second", "Throughput", "tokens/s"},
                                  {"peak_memory_bytes", "Peak memory", "GiB", 1 / kGiB}};
// What these say is said by another metric.
const std::set<std::string> kLeftOut = {"tokens_seen", "step_seconds", "validation_loss",
                                        "validation_tokens", "validation_seconds"};

const Series* find(const RunLog& run, const std::string& metric) {
  const auto found = run.series.find(metric);
  return found == run.series.end() ? nullptr : &found->second;
}

// "float8/layers.0/input/saturated" belongs to the chart "float8 saturated" as "layers.0/input".
struct MetricName {
  std::string chart;
  std::string line;
};

MetricName split_name(const std::string& metric) {
  const size_t first = metric.find('/');
  const size_t last = metric.rfind('/');
  if (first == std::string::npos) {
    return {metric, ""};
  }
  const std::string chart = metric.substr(0, first) + " " + metric.substr(last + 1);
  return {chart, first == last ? "" : metric.substr(first + 1, last - first - 1)};
}

std::string with_run(const std::vector<RunLog>& runs, const RunLog& run, const std::string& name) {
  return runs.size() == 1 ? name : run.name + (name.empty() ? "" : ", " + name);
}

Chart known_chart(const std::vector<RunLog>& runs, const KnownMetric& metric) {
  Chart chart = {.id = metric.name,
                 .title = metric.title,
                 .unit = metric.unit,
                 .scale = metric.scale,
                 .lines = {}};
  chart.lets_start_leave = chart.id == "loss";
  for (size_t i = 0; i < runs.size(); ++i) {
    if (const Series* series = find(runs[i], metric.name)) {
      chart.lines.push_back(
          {with_run(runs, runs[i], runs.size() == 1 ? "training" : ""), series, i});
    }
  }
  if (chart.id != "loss") {
    return chart;
  }
  for (size_t i = 0; i < runs.size(); ++i) {
    if (const Series* series = find(runs[i], "validation_loss")) {
      const size_t color = runs.size() == 1 ? 1 : i;
      chart.lines.push_back({with_run(runs, runs[i], "held-out"), series, color, true});
    }
  }
  return chart;
}

// Of the metrics that are not known.
std::vector<Chart> other_charts(const std::vector<RunLog>& runs) {
  std::map<std::string, std::vector<ChartLine>> groups;
  for (size_t i = 0; i < runs.size(); ++i) {
    for (const auto& [metric, series] : runs[i].series) {
      const bool known = std::any_of(std::begin(kKnown), std::end(kKnown),
                                     [&](const KnownMetric& k) { return k.name == metric; });
      if (!known && !kLeftOut.contains(metric)) {
        const MetricName name = split_name(metric);
        groups[name.chart].push_back({with_run(runs, runs[i], name.line), &series, i});
      }
    }
  }
  std::vector<Chart> charts;
  for (auto& [name, lines] : groups) {
    Chart chart = {.id = "other-" + std::to_string(charts.size()),
                   .title = name,
                   .unit = "",
                   .lines = std::move(lines)};
    std::stable_sort(chart.lines.begin(), chart.lines.end(),
                     [](const ChartLine& a, const ChartLine& b) {
                       return (a.series->empty() ? 0 : a.series->max()) >
                              (b.series->empty() ? 0 : b.series->max());
                     });
    if (chart.lines.size() > kMaxLines) {
      chart.unit =
          "the " + std::to_string(kMaxLines) + " highest of " + std::to_string(chart.lines.size());
      chart.lines.resize(kMaxLines);
    }
    if (chart.lines.size() > runs.size()) {
      for (size_t i = 0; i < chart.lines.size(); ++i) {
        chart.lines[i].color = i;
      }
    }
    charts.push_back(std::move(chart));
  }
  return charts;
}

std::string element(const std::string& tag, const std::string& text) {
  return "<" + tag + ">" + escape_html(text) + "</" + tag + ">";
}

std::string swatch(size_t color) {
  return "<i style=\"--c:var(--c" + std::to_string(color % kPaletteSize) + ")\"></i>";
}

std::string chart_html(const Chart& chart) {
  const std::string svg = svg_chart(chart);
  if (svg.empty()) {
    return "";
  }
  std::string html = "<figure><figcaption><h3>" + escape_html(chart.title) + "</h3>";
  if (!chart.unit.empty()) {
    html += "<span>" + escape_html(chart.unit) + "</span>";
  }
  html += "</figcaption>" + svg;
  if (chart.lines.size() > 1) {
    html += "<ul class=\"legend\">";
    for (const ChartLine& line : chart.lines) {
      html += "<li>" + swatch(line.color) + escape_html(line.name) +
              (line.marks ? " (marks)" : "") + "</li>";
    }
    html += "</ul>";
  }
  return html + "</figure>\n";
}

using Fact = std::pair<std::string, std::string>;

// What a reader looks for first. Absent metrics are "-".
std::vector<Fact> facts_of(const RunLog& run) {
  const auto last = [&](const char* metric) {
    const Series* series = find(run, metric);
    if (series != nullptr && series->ends_not_finite()) {
      return std::string("not finite");
    }
    return series == nullptr || series->empty() ? "-" : short_number(series->last());
  };
  int64_t steps = 0;
  for (const auto& [name, series] : run.series) {
    steps = std::max(steps, series.last_step());
  }
  const Series* held_out = find(run, "validation_loss");
  const Series* speed = find(run, "tokens_per_second");
  const Series* memory = find(run, "peak_memory_bytes");
  double sum = 0;
  int64_t count = 0;
  if (speed != nullptr) {
    for (const Series::Bucket& bucket : speed->buckets()) {
      sum += bucket.sum;
      count += bucket.count;
    }
  }
  return {
      {"steps", steps == 0 ? "-" : std::to_string(steps)},
      {"last loss", last("loss")},
      {"last held-out loss", last("validation_loss")},
      {"best held-out loss",
       held_out == nullptr || held_out->empty() ? "-" : short_number(held_out->min())},
      {"tokens seen", last("tokens_seen")},
      {"tokens/s, mean", count == 0 ? "-" : short_number(sum / static_cast<double>(count))},
      {"peak memory",
       memory == nullptr || memory->empty() ? "-" : short_number(memory->max() / kGiB) + " GiB"}};
}

std::string facts_html(const std::vector<RunLog>& runs) {
  if (runs.size() == 1) {
    std::string html = "<dl class=\"facts\">";
    for (const auto& [name, value] : facts_of(runs.front())) {
      if (value != "-") {
        html += "<div>" + element("dt", name) + element("dd", value) + "</div>";
      }
    }
    return html + "</dl>\n";
  }
  std::string html =
      "<div class=\"scroll\"><table class=\"facts-of\"><thead><tr><th scope=\"col\">run</th>";
  for (const auto& [name, value] : facts_of(runs.front())) {
    html += "<th scope=\"col\">" + escape_html(name) + "</th>";
  }
  html += "</tr></thead><tbody>";
  for (size_t i = 0; i < runs.size(); ++i) {
    html += "<tr><th scope=\"row\">" + swatch(i) + escape_html(runs[i].name) + "</th>";
    for (const auto& [name, value] : facts_of(runs[i])) {
      html += element("td", value);
    }
    html += "</tr>";
  }
  return html + "</tbody></table></div>\n";
}

// "1 line", "3 lines"
std::string counted(int64_t count, const std::string& thing) {
  return std::to_string(count) + " " + thing + (count == 1 ? "" : "s");
}

// What else a reader should know before trusting the curves.
std::string notes_html(const std::vector<RunLog>& runs) {
  std::string html;
  const auto note = [&](const RunLog& run, const std::string& text) {
    html += element("li", (runs.size() == 1 ? "" : run.name + ": ") + text);
  };
  for (const RunLog& run : runs) {
    for (const auto& [metric, series] : run.series) {
      if (series.num_not_finite() > 0) {
        note(run, metric + " was not finite " + counted(series.num_not_finite(), "time") +
                      ", first at step " + std::to_string(series.not_finite_steps().front()));
      }
    }
    if (run.num_repeated > 0) {
      note(run, counted(run.num_repeated, "step") +
                    " came again in the log (the run was resumed); the charts show them together");
    }
    if (run.num_bad_lines > 0) {
      note(run,
           counted(run.num_bad_lines, "line") + " of metrics.jsonl could not be read, left out");
    }
    if (run.num_lines == 0) {
      note(run, "nothing was logged yet");
    }
  }
  return html.empty() ? "" : "<ul class=\"notes\">" + html + "</ul>\n";
}

std::string samples_html(const std::vector<RunLog>& runs) {
  std::string html;
  for (const RunLog& run : runs) {
    for (auto sample = run.samples.rbegin(); sample != run.samples.rend(); ++sample) {
      const bool newest = sample == run.samples.rbegin();
      html += std::string("<details") + (newest ? " open" : "") + "><summary>" +
              escape_html(with_run(runs, run, "step " + std::to_string(sample->step))) +
              "</summary><pre><b>" + escape_html(sample->prompt) + "</b>" +
              escape_html(sample->text) + "</pre></details>\n";
    }
  }
  return html.empty() ? "" : "<section><h2>Samples</h2>" + html + "</section>\n";
}

std::string setting(const RunLog& run, const std::string& key) {
  const auto found = run.settings.find(key);
  return found == run.settings.end() ? "-" : found->second;
}

// Of one run all settings, folded; of several those that differ.
std::string settings_html(const std::vector<RunLog>& runs) {
  std::set<std::string> keys;
  for (const RunLog& run : runs) {
    for (const auto& [key, value] : run.settings) {
      keys.insert(key);
    }
  }
  std::string rows;
  for (const std::string& key : keys) {
    const bool differs = std::any_of(runs.begin(), runs.end(), [&](const RunLog& run) {
      return setting(run, key) != setting(runs.front(), key);
    });
    if (runs.size() == 1 || differs) {
      rows += "<tr><th scope=\"row\">" + escape_html(key) + "</th>";
      for (const RunLog& run : runs) {
        rows += "<td><code>" + escape_html(setting(run, key)) + "</code></td>";
      }
      rows += "</tr>";
    }
  }
  if (keys.empty()) {
    return "";
  }
  if (rows.empty()) {
    return "<section><h2>Settings</h2><p>The settings of these runs are the same.</p></section>\n";
  }
  std::string table = "<div class=\"scroll\"><table><thead><tr><th scope=\"col\">key</th>";
  for (const RunLog& run : runs) {
    table += "<th scope=\"col\">" + escape_html(runs.size() == 1 ? "value" : run.name) + "</th>";
  }
  table += "</tr></thead><tbody>" + rows + "</tbody></table></div>";
  return runs.size() == 1
             ? "<section><h2>Settings</h2><details><summary>all " + std::to_string(keys.size()) +
                   "</summary>" + table + "</details></section>\n"
             : "<section><h2>Settings that differ</h2>" + table + "</section>\n";
}

}  // namespace

std::vector<Chart> choose_charts(const std::vector<RunLog>& runs) {
  std::vector<Chart> charts;
  for (const KnownMetric& metric : kKnown) {
    charts.push_back(known_chart(runs, metric));
  }
  for (Chart& chart : other_charts(runs)) {
    charts.push_back(std::move(chart));
  }
  return charts;
}

std::string render_page(const std::vector<RunLog>& runs) {
  std::string title;
  for (const RunLog& run : runs) {
    title += (title.empty() ? "" : ", ") + run.name;
  }
  std::string html =
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
      "<meta name=\"color-scheme\" content=\"light dark\">"
      "<link rel=\"icon\" href=\"data:,\">" +
      element("title", title) + "<style>" + kPageStyle + "</style></head><body><main>" +
      element("h1", title) + facts_html(runs) + notes_html(runs) +
      "<section class=\"charts\" aria-label=\"Charts\">\n";
  for (const Chart& chart : choose_charts(runs)) {
    html += chart_html(chart);
  }
  return html + "</section>\n" + samples_html(runs) + settings_html(runs) +
         "<footer>Horizontal axes are steps. Lines are means and bands the range of the values in "
         "a "
         "column of pixels.</footer></main></body></html>\n";
}

}  // namespace narrowgauge::report
