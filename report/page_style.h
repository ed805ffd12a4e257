#pragma once

namespace narrowgauge::report {

// The style sheet of a page. --c0 to --c5 are the palette of lines (chart.h: kPaletteSize): apart
// for readers who see few colours (Okabe and Ito), at least 3:1 against the background in light and
// dark.
inline constexpr const char* kPageStyle = R"css(
:root{--bg:#fff;--fg:#1b1f24;--dim:#57606a;--rule:#d8dee4;--card:#f6f8fa;--bad:#b42318;
--c0:#0072b2;--c1:#b45309;--c2:#00785a;--c3:#a8327e;--c4:#5b6470;--c5:#6d4bc3}
@media(prefers-color-scheme:dark){:root{--bg:#0f1318;--fg:#e6edf3;--dim:#9aa5b1;--rule:#2b333d;--card:#171d24;
--bad:#ff8a80;--c0:#56b4e9;--c1:#e69f00;--c2:#2fc79a;--c3:#e58ac8;--c4:#b6bfca;--c5:#b39ddb}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.45 system-ui,sans-serif}
main{max-width:1360px;margin:0 auto;padding:20px 16px 48px}
h1{font-size:1.5rem;margin:0 0 12px;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:32px 0 8px}
h3{font-size:1rem;margin:0}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:8px;margin:0}
.facts div{background:var(--card);border-radius:8px;padding:8px 12px}
dt{color:var(--dim);font-size:.8rem}
dd{margin:0;font-size:1.2rem;font-variant-numeric:tabular-nums}
.notes{background:var(--card);border-left:4px solid var(--bad);border-radius:4px;margin:16px 0 0;padding:8px 12px 8px 32px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));gap:16px;margin-top:20px;align-items:start}
figure{margin:0;border:1px solid var(--rule);border-radius:8px;padding:12px 12px 8px;min-width:0}
figcaption{display:flex;gap:8px;align-items:baseline;flex-wrap:wrap;margin-bottom:4px}
figcaption span{color:var(--dim);font-size:.8rem}
svg{display:block;width:100%;height:auto}
.grid path{stroke:var(--rule);fill:none}
.tick text{fill:var(--dim);font-size:13px;font-variant-numeric:tabular-nums}
.line{stroke:var(--c);stroke-width:1.8;fill:none;stroke-linejoin:round}
.band{fill:var(--c);opacity:.22}
.mark{fill:var(--bg);stroke:var(--c);stroke-width:1.8}
.bad{fill:var(--bad)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 14px;margin:4px 0 0;padding:0;font-size:.85rem;overflow-wrap:anywhere}
i{display:inline-block;width:12px;height:12px;border-radius:3px;background:var(--c);margin-right:6px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:4px 14px 4px 0;border-bottom:1px solid var(--rule);vertical-align:top}
th{font-weight:600}
.facts-of th,.facts-of td{white-space:nowrap}
code,pre{font:13px/1.45 ui-monospace,monospace}
pre{background:var(--card);border-radius:8px;padding:10px 12px;margin:6px 0 12px;white-space:pre-wrap;overflow-wrap:anywhere}
summary{cursor:pointer;padding:4px 0}
footer{color:var(--dim);font-size:.8rem;margin-top:32px}
)css";

}  // namespace narrowgauge::report
