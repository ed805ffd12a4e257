#include "data/pre_tokenizer.h"

#include <algorithm>
#include <utility>

#include "data/unicode_text.h"

namespace narrowgauge::data {
namespace {

struct Segment {
  size_t begin;
  size_t end;
  bool is_match;
};

// Calls match(begin, end) for the successive matches in text. An empty match right behind another
// match is skipped, as Oniguruma's iterator does.
template <typename Sink>
void for_each_match(const UnicodeRegex& pattern, std::string_view text, RegexScratch& scratch,
                    const Sink& sink) {
  size_t offset = 0;
  size_t last_end = std::string_view::npos;
  RegexMatch match;
  while (offset <= text.size() && pattern.find(text, offset, scratch, match)) {
    if (match.begin == match.end && match.end == last_end) {
      offset = match.end < text.size() ? match.end + character_length(text.substr(match.end))
                                       : text.size() + 1;
      continue;
    }
    sink(match.begin, match.end);
    offset = last_end = match.end;
  }
}

std::vector<Segment> segments_of(const UnicodeRegex& pattern, std::string_view text, bool invert,
                                 RegexScratch& scratch) {
  std::vector<Segment> segments;
  size_t covered = 0;
  for_each_match(pattern, text, scratch, [&](size_t begin, size_t end) {
    if (covered != begin) {
      segments.push_back({covered, begin, invert});
    }
    segments.push_back({begin, end, !invert});
    covered = end;
  });
  if (covered != text.size()) {
    segments.push_back({covered, text.size(), invert});
  }
  return segments;
}

// Joins neighbours where joins(previous, current) holds; the result takes the current's kind.
template <typename Joins>
std::vector<Segment> join(const std::vector<Segment>& segments, const Joins& joins) {
  std::vector<Segment> joined;
  bool previous = false;
  for (const Segment& segment : segments) {
    if (!joined.empty() && joins(previous, segment.is_match)) {
      joined.back().end = segment.end;
    } else {
      joined.push_back(segment);
    }
    previous = segment.is_match;
  }
  return joined;
}

std::vector<Segment> join_with_next(std::vector<Segment> segments) {
  std::reverse(segments.begin(), segments.end());
  std::vector<Segment> joined;
  bool previous = false;
  for (const Segment& segment : segments) {
    if (!joined.empty() && segment.is_match && !previous) {
      joined.back().begin = segment.begin;
    } else {
      joined.push_back(segment);
    }
    previous = segment.is_match;
  }
  std::reverse(joined.begin(), joined.end());
  return joined;
}

std::vector<Segment> apply(SplitBehavior behavior, std::vector<Segment> segments) {
  switch (behavior) {
    case SplitBehavior::kIsolated:
      return segments;
    case SplitBehavior::kRemoved:
      std::erase_if(segments, [](const Segment& segment) { return segment.is_match; });
      return segments;
    case SplitBehavior::kMergedWithPrevious:
      return join(segments, [](bool previous, bool current) { return current && !previous; });
    case SplitBehavior::kMergedWithNext:
      return join_with_next(std::move(segments));
    case SplitBehavior::kContiguous:
      return join(segments, [](bool previous, bool current) { return current == previous; });
  }
  return segments;
}

}  // namespace

void PreTokenizer::add_split(UnicodeRegex pattern, SplitBehavior behavior, bool invert) {
  Stage stage{false, {}, behavior, invert};
  stage.pattern.push_back(std::move(pattern));
  stages_.push_back(std::move(stage));
}

void PreTokenizer::add_prefix_space() {
  stages_.push_back({true, {}, SplitBehavior::kIsolated, false});
}

void PreTokenizer::for_each_piece(std::string_view text, RegexScratch& scratch,
                                  const PieceSink& sink) const {
  run_stage(0, text, scratch, sink);
}

void PreTokenizer::run_stage(size_t stage, std::string_view text, RegexScratch& scratch,
                             const PieceSink& sink) const {
  if (text.empty()) {
    return;
  }
  if (stage == stages_.size()) {
    sink(text);
  } else if (stages_[stage].prefix_space) {
    if (text.front() == ' ') {
      run_stage(stage + 1, text, scratch, sink);
    } else {
      run_stage(stage + 1, " " + std::string(text), scratch, sink);
    }
  } else if (stages_[stage].behavior == SplitBehavior::kIsolated) {
    // The behaviour of nearly every tokenizer: no list of segments, pieces go on as they are found.
    for_each_isolated(stages_[stage].pattern.front(), text, scratch,
                      [&](std::string_view piece) { run_stage(stage + 1, piece, scratch, sink); });
  } else {
    split(stage, text, scratch, sink);
  }
}

void PreTokenizer::split(size_t stage, std::string_view text, RegexScratch& scratch,
                         const PieceSink& sink) const {
  const Stage& rule = stages_[stage];
  auto segments = segments_of(rule.pattern.front(), text, rule.invert, scratch);
  for (const Segment& segment : apply(rule.behavior, std::move(segments))) {
    run_stage(stage + 1, text.substr(segment.begin, segment.end - segment.begin), scratch, sink);
  }
}

void for_each_isolated(const UnicodeRegex& pattern, std::string_view text, RegexScratch& scratch,
                       const PreTokenizer::PieceSink& sink) {
  size_t covered = 0;
  for_each_match(pattern, text, scratch, [&](size_t begin, size_t end) {
    if (covered < begin) {
      sink(text.substr(covered, begin - covered));
    }
    if (begin < end) {
      sink(text.substr(begin, end - begin));
    }
    covered = end;
  });
  if (covered < text.size()) {
    sink(text.substr(covered));
  }
}

}  // namespace narrowgauge::data
