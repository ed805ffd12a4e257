#include "report/chart.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>

namespace narrowgauge::report {
namespace {

constexpr double kWidth = 420;
constexpr double kHeight = 240;
constexpr double kLeft = 62;
constexpr double kRight = 12;
constexpr double kTop = 10;
constexpr double kBottom = 30;
constexpr double kLogSpan = 100;
constexpr double kStartShare = 0.05;
constexpr int kTicks = 5;
constexpr const char* kDashes[] = {"", "6 3", "2 3", "8 3 2 3"};

[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...) {
  char text[256];
  va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(text, sizeof text, pattern, arguments);
  va_end(arguments);
  return text;
}

// An axis from values to the viewport.
struct Axis {
  double low = 0;
  double high = 1;
  double begin = 0;  // where `low` is
  double end = 1;
  bool is_log = false;

  double scaled(double value) const { return is_log ? std::log10(value) : value; }
  double at(double value) const {
    const double share = (scaled(value) - scaled(low)) / (scaled(high) - scaled(low));
    return begin + share * (end - begin);
  }
};

// 1, 2 or 5 times a power of ten, at least span / kTicks.
double nice_step(double span) {
  const double raw = span / kTicks;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw * 0.999) {
      return factor * power;
    }
  }
  return 10 * power;
}

std::vector<double> ticks_of(const Axis& axis) {
  std::vector<double> ticks;
  if (axis.is_log) {
    const int first = static_cast<int>(std::ceil(std::log10(axis.low) - 1e-9));
    const int last = static_cast<int>(std::floor(std::log10(axis.high) + 1e-9));
    const int stride = std::max(1, (last - first + kTicks) / (kTicks + 1));
    for (int exponent = first; exponent <= last; exponent += stride) {
      ticks.push_back(std::pow(10.0, exponent));
    }
    return ticks;
  }
  const double step = nice_step(axis.high - axis.low);
  for (double index = std::ceil(axis.low / step - 1e-9); index * step <= axis.high + 1e-9 * step;
       ++index) {
    ticks.push_back(index * step + 0.0);  // never -0
  }
  return ticks;
}

// The greatest value, or that behind the start where there is any.
double greatest(const Chart& chart, const Series& series) {
  double high = -std::numeric_limits<double>::infinity();
  const double start = kStartShare * static_cast<double>(series.last_step());
  for (const Series::Bucket& bucket : series.buckets()) {
    if (chart.lets_start_leave && static_cast<double>(bucket.step) > start) {
      high = std::max(high, bucket.max);
    }
  }
  return std::isfinite(high) ? high : series.max();
}

Axis vertical_axis(const Chart& chart) {
  double low = std::numeric_limits<double>::infinity();
  double high = -low;
  for (const ChartLine& line : chart.lines) {
    if (!line.series->empty()) {
      low = std::min(low, chart.scale * line.series->min());
      high = std::max(high, chart.scale * greatest(chart, *line.series));
    }
  }
  Axis axis{low, high, kHeight - kBottom, kTop};
  if (low > 0 && high / low > kLogSpan) {
    axis.is_log = true;
    return axis;
  }
  const double magnitude = std::max({std::abs(low), std::abs(high), 1e-12});
  const double span = high - low > 1e-9 * magnitude ? high - low : 0.1 * magnitude;
  // A quantity that comes near zero is shown down to it.
  axis.low = low >= 0 && low < 0.2 * high ? 0 : low - 0.05 * span;
  axis.high = high + 0.05 * span;
  return axis;
}

Axis horizontal_axis(const std::vector<ChartLine>& lines) {
  int64_t first = std::numeric_limits<int64_t>::max();
  int64_t last = 1;
  for (const ChartLine& line : lines) {
    const auto buckets = line.series->buckets();
    if (!buckets.empty()) {
      first = std::min(first, buckets.front().step);
      last = std::max(last, buckets.back().step);
    }
    for (const int64_t step : line.series->not_finite_steps()) {
      first = std::min(first, step);
      last = std::max(last, step);
    }
  }
  const auto high = static_cast<double>(std::max(last, first + 1));
  // From the first step where a run begins late (a part of a log), else from 0.
  const double low = static_cast<double>(first) > 0.5 * high ? static_cast<double>(first) : 0;
  return {low, high, kLeft, kWidth - kRight};
}

std::string grid(const Axis& x, const Axis& y) {
  std::string text = "<g class=\"grid\">";
  for (const double tick : ticks_of(y)) {
    text += format("<path d=\"M%.0f %.1fH%.0f\"/>", kLeft, y.at(tick), kWidth - kRight);
  }
  text += "</g><g class=\"tick\" text-anchor=\"end\">";
  for (const double tick : ticks_of(y)) {
    text += format("<text x=\"%.0f\" y=\"%.1f\">%s</text>", kLeft - 6, y.at(tick) + 4,
                   short_number(tick).c_str());
  }
  text += "</g><g class=\"tick\" text-anchor=\"middle\">";
  for (const double tick : ticks_of(x)) {
    text += format("<text x=\"%.1f\" y=\"%.0f\">%s</text>", std::min(x.at(tick), kWidth - 16),
                   kHeight - kBottom + 17, short_number(tick).c_str());
  }
  return text + "</g>";
}

// Values that fall into one column of pixels become one.
std::vector<Series::Bucket> columns_of(const Series& series, const Axis& x) {
  std::vector<Series::Bucket> columns;
  int64_t open = -1;
  for (const Series::Bucket& bucket : series.buckets()) {
    const auto pixel = static_cast<int64_t>(x.at(static_cast<double>(bucket.step)));
    if (pixel != open) {
      columns.emplace_back();
      open = pixel;
    }
    columns.back().merge(bucket);
  }
  return columns;
}

std::string line_svg(const ChartLine& line, double scale, const Axis& x, const Axis& y) {
  const auto columns = columns_of(*line.series, x);
  if (columns.empty()) {
    return "";
  }
  std::string path, upper, lower, marks;
  bool has_band = false;
  const std::string color = format("style=\"--c:var(--c%zu)\"", line.color % kPaletteSize);
  for (const Series::Bucket& column : columns) {
    const double at = x.at(static_cast<double>(column.step));
    path += format("%s%.1f %.1f", path.empty() ? "M" : "L", at, y.at(scale * column.mean()));
    upper += format("%s%.1f %.1f", upper.empty() ? "M" : "L", at, y.at(scale * column.max));
    lower.insert(0, format("L%.1f %.1f", at, y.at(scale * column.min)));
    has_band = has_band || column.max > column.min;
    if (line.marks || columns.size() == 1) {
      marks += format("<circle class=\"mark\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"/>", at,
                      y.at(scale * column.mean()));
    }
  }
  const char* dash = kDashes[line.color / kPaletteSize % std::size(kDashes)];
  std::string text = "<g " + color + ">";
  if (has_band) {
    text += "<path class=\"band\" d=\"" + upper + lower + "Z\"/>";
  }
  return text + "<path class=\"line\" stroke-dasharray=\"" + dash + "\" d=\"" + path + "\"/>" +
         marks + "</g>";
}

// Steps without a finite value: triangles at the lower edge.
std::string not_finite_svg(const std::vector<ChartLine>& lines, const Axis& x) {
  std::string text;
  for (const ChartLine& line : lines) {
    for (const int64_t step : line.series->not_finite_steps()) {
      text += format(
          "<path class=\"bad\" d=\"M%.1f %.0fl4 8h-8z\"><title>not finite at step "
          "%ld</title></path>",
          x.at(static_cast<double>(step)), kHeight - kBottom - 8, step);
    }
  }
  return text;
}

std::string description(const Chart& chart) {
  std::string text;
  for (const ChartLine& line : chart.lines) {
    const Series& series = *line.series;
    text += line.name.empty() ? "" : line.name + ": ";
    if (series.empty()) {
      text += "no finite value";
    } else {
      text += short_number(chart.scale * series.last()) + " at step " +
              std::to_string(series.last_step()) + ", least " +
              short_number(chart.scale * series.min()) + ", greatest " +
              short_number(chart.scale * series.max());
    }
    if (series.num_not_finite() > 0) {
      text += ", " + std::to_string(series.num_not_finite()) + " not finite";
    }
    text += ". ";
  }
  return text;
}

}  // namespace

std::string svg_chart(const Chart& chart) {
  Chart shown = chart;
  std::erase_if(shown.lines, [](const ChartLine& line) {
    return line.series->empty() && line.series->num_not_finite() == 0;
  });
  const bool has_value = std::any_of(shown.lines.begin(), shown.lines.end(),
                                     [](const ChartLine& line) { return !line.series->empty(); });
  if (!has_value) {
    return "";
  }
  const Axis x = horizontal_axis(shown.lines);
  const Axis y = vertical_axis(shown);
  std::string text = format("<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" ", kWidth, kHeight) +
                     "aria-labelledby=\"" + chart.id + "-t " + chart.id + "-d\"><title id=\"" +
                     chart.id + "-t\">" + escape_html(chart.title) + "</title><desc id=\"" +
                     chart.id + "-d\">" + escape_html(description(shown)) + "</desc>";
  text += grid(x, y) +
          format("<clipPath id=\"%s-c\"><path d=\"M0 %.0fH%.0fV%.0fH0z\"/></clipPath>",
                 chart.id.c_str(), kTop - 4, kWidth, kHeight - kBottom + 2) +
          "<g clip-path=\"url(#" + chart.id + "-c)\">";
  for (const ChartLine& line : shown.lines) {
    text += line_svg(line, chart.scale, x, y);
  }
  return text + "</g>" + not_finite_svg(shown.lines, x) + "</svg>\n";
}

std::string short_number(double value) {
  const double magnitude = std::abs(value);
  if (!std::isfinite(value)) {
    return std::isnan(value) ? "not a number" : value > 0 ? "infinity" : "-infinity";
  }
  if (magnitude != 0 && (magnitude < 1e-3 || magnitude >= 1e15)) {
    return format("%.3g", value);
  }
  if (magnitude < 9999.5) {
    return format("%.4g", value);
  }
  // Three digits and the next larger unit where rounding reaches it: 999,999 is 1 M.
  constexpr std::pair<double, const char*> kUnits[] = {
      {1e12, " T"}, {1e9, " G"}, {1e6, " M"}, {1e3, " k"}};
  for (const auto& [unit, name] : kUnits) {
    if (magnitude >= 0.9995 * unit) {
      return format("%.4g%s", value / unit, name);
    }
  }
  return format("%.4g", value);
}

std::string escape_html(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

}  // namespace narrowgauge::report
