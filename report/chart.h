#pragma once

#include <string>
#include <vector>

#include "report/series.h"

namespace narrowgauge::report {

// One line of a chart. `series` must outlive the call.
struct ChartLine {
  std::string name;
  const Series* series = nullptr;
  size_t color = 0;    // of the page's palette; repeats behind its end, with another dash
  bool marks = false;  // draw a mark at every value: few of them
};

struct Chart {
  std::string id;     // unique in its page, letters, digits and '-'
  std::string title;  // "loss"
  std::string unit;   // "tokens/s"; may be empty
  double scale = 1;   // values are shown times this, in `unit`
  // The first twentieth of the steps may leave the chart above, so that the rest is seen.
  bool lets_start_leave = false;
  std::vector<ChartLine> lines;
};

constexpr size_t kPaletteSize = 6;

// An SVG element that scales with the page: one column of pixels shows the mean of its values as a
// line and their range as a band, whatever their number. The vertical axis is logarithmic where
// values are positive and span more than a factor of 100. Steps of values that are not finite are
// marked at the lower edge. Colours are CSS variables of the page (page.cc), so that light and dark
// both suit; a <title> and a <desc> say in words what it shows. Empty where no line has a value.
std::string svg_chart(const Chart& chart);

// "1.25 M", "3.2e-4", "0.0123": at most about four digits.
std::string short_number(double value);

// Text for HTML and SVG: & < > " ' replaced.
std::string escape_html(const std::string& text);

}  // namespace narrowgauge::report
