"""How the report looks, and what its pointer does. Colours pass 3:1 against both grounds, and never stand alone."""

STYLE = """
:root{color-scheme:light dark;--ground:#fff;--panel:#f6f7f8;--ink:#1b1f24;--soft:#59636e;--rule:#dfe3e8;--mark:#a3182f;
--c0:#1f6fb4;--c1:#b8590f;--c2:#2c7d3f;--c3:#7d4cab;--c4:#a8324a;--c5:#0f7f83;--c6:#7a6a14;--c7:#59636e}
@media (prefers-color-scheme:dark){:root{--ground:#14171b;--panel:#1c2026;--ink:#e6e9ed;--soft:#a0a9b4;--rule:#323943;
--mark:#ff8095;--c0:#6cb2f2;--c1:#f0a35e;--c2:#76c98a;--c3:#c4a0ee;--c4:#f28fa2;--c5:#5fc9cc;--c6:#d3c15c;
--c7:#a0a9b4}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 64px}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 6px}
h2{font-size:1.15rem;margin:40px 0 10px}
header p,section>p{max-width:75ch;margin:0 0 12px;color:var(--soft)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:1px;margin:20px 0 0;
background:var(--rule);border:1px solid var(--rule);border-radius:8px;overflow:hidden}
.figures>div{background:var(--panel);padding:12px 14px}
.figures dt{color:var(--soft);font-size:.82rem}
.figures dd{margin:2px 0 0;font-size:1.45rem;font-weight:600;font-variant-numeric:tabular-nums}
.figures dd small{font-size:.85rem;font-weight:400;color:var(--soft);margin-left:.3em}
.figures dd.note{font-size:.78rem;font-weight:400}
.note{color:var(--soft);font-size:.82rem;margin:6px 0 0}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:28px 32px}
figure{margin:0;min-width:0}
figcaption{margin-bottom:10px}
.unit{color:var(--soft);font-size:.85rem;margin-left:.3em}
.legend{display:none;flex-wrap:wrap;gap:2px 14px;list-style:none;margin:0 0 6px;padding:0;font-size:.82rem}
.legend.always{display:flex}
.key{display:inline-block;width:14px;height:0;border-top:3px solid;margin-right:6px;vertical-align:middle}
.key.dashed{border-top-style:dashed}
.frame{display:grid;grid-template-columns:52px minmax(0,1fr) 104px;height:210px}
.ys,.ends,.xs{position:relative;font-size:.75rem;color:var(--soft);font-variant-numeric:tabular-nums}
.ys span{position:absolute;right:8px;transform:translateY(-50%)}
.ends span{position:absolute;left:8px;right:0;transform:translateY(-50%);white-space:nowrap;overflow:hidden;
text-overflow:ellipsis;font-size:.78rem;font-weight:600}
.xs{height:20px;margin:4px 104px 0 52px}
.xs span{position:absolute;transform:translateX(-50%);white-space:nowrap}
.xs span:first-child{transform:none}
.plot{position:relative;border-bottom:1px solid var(--soft);outline-offset:3px}
.plot svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.grid line{stroke:var(--rule);stroke-width:1;vector-effect:non-scaling-stroke}
.mark{stroke:var(--mark);stroke-width:1.25;stroke-dasharray:5 4;vector-effect:non-scaling-stroke}
.line{fill:none;stroke-width:2;stroke-linejoin:round;vector-effect:non-scaling-stroke}
.line.dashed{stroke-dasharray:6 4}
.area{stroke:var(--ground);stroke-width:1;vector-effect:non-scaling-stroke;fill-opacity:.8}
.words{position:absolute;right:4px;transform:translateY(-105%);font-size:.75rem;color:var(--mark);
background:color-mix(in srgb,var(--ground) 75%,transparent);padding:0 3px}
.words.below{transform:translateY(8%)}
.cursor{position:absolute;top:0;bottom:0;width:1px;background:var(--soft);pointer-events:none}
.tip{position:absolute;top:6px;z-index:2;pointer-events:none;background:var(--ground);border:1px solid var(--rule);
border-radius:6px;padding:6px 9px;font-size:.78rem;line-height:1.4;box-shadow:0 2px 8px rgb(0 0 0/.18);
white-space:nowrap;font-variant-numeric:tabular-nums}
.tip b{display:block;color:var(--soft);font-weight:500}
.tip .v{float:right;margin-left:14px;font-weight:600}
.xs .unit{left:auto;right:-104px;width:98px;transform:none;margin:0;font-size:.72rem;opacity:.9}
.tables{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:4px 32px}
.wide{overflow-x:auto;min-width:0}
.tall{max-height:460px;overflow-y:auto;border:1px solid var(--rule);border-radius:8px}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;margin:14px 0 0;
min-width:min(100%,420px)}
.tall table{margin:0;width:100%}
.tall thead th{position:sticky;top:0;background:var(--panel)}
caption{text-align:left;font-weight:600;padding-bottom:4px}
th,td{padding:4px 12px 4px 0;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top;font-weight:400}
th:first-child,.prose th,.prose td{text-align:left}
.prose th,.prose td{padding:5px 12px}
.prose td:nth-child(2){white-space:nowrap}
td{white-space:nowrap}
.prose td{white-space:normal}
thead th{color:var(--soft);font-size:.8rem;border-bottom-color:var(--soft)}
details{margin-top:6px;font-size:.85rem}
summary{cursor:pointer;color:var(--soft)}
ul{padding-left:1.2em;max-width:85ch}
li{margin:3px 0}
@media (max-width:640px){main{padding:18px 14px 48px}.frame{grid-template-columns:44px minmax(0,1fr) 4px}
.ends{display:none}.legend{display:flex}.xs{margin:4px 4px 0 44px}.xs span:nth-child(even),.xs .unit{display:none}
.prose td:nth-child(2){white-space:normal}}
@media print{details{display:none}.tall{max-height:none}}
""" + "".join(
    f".line.c{n}{{stroke:var(--c{n})}}.area.c{n}{{fill:var(--c{n})}}.key.c{n}{{border-color:var(--c{n})}}"
    f".t{n}{{color:var(--c{n})}}"
    for n in range(8)
)
"""CSS of the page."""

SCRIPT = """
for (const plot of document.querySelectorAll('.plot')) {
  const data = JSON.parse(plot.dataset.values), line = plot.querySelector('.cursor'), tip = plot.querySelector('.tip');
  let at = -1;
  const show = (index) => {
    at = Math.max(0, Math.min(data.x.length - 1, index));
    const left = 100 * data.x[at];
    line.hidden = tip.hidden = false;
    line.style.left = left + '%';
    tip.style.left = left < 55 ? 'calc(' + left + '% + 10px)' : '';
    tip.style.right = left < 55 ? '' : 'calc(' + (100 - left) + '% + 10px)';
    tip.replaceChildren();
    const time = document.createElement('b');
    time.textContent = data.t[at];
    tip.append(time);
    for (const each of data.s.slice().reverse()) {
      const row = document.createElement('div'), value = document.createElement('span');
      const key = document.createElement('i');
      key.className = 'key c' + each.c;
      value.className = 'v';
      value.textContent = each.v[at];
      row.append(value, key, each.n);
      tip.append(row);
    }
  };
  const hide = () => { line.hidden = tip.hidden = true; };
  plot.addEventListener('pointermove', (event) => {
    const box = plot.getBoundingClientRect(), x = (event.clientX - box.left) / box.width;
    let best = 0;
    data.x.forEach((each, index) => { if (Math.abs(each - x) < Math.abs(data.x[best] - x)) { best = index; } });
    show(best);
  });
  plot.addEventListener('pointerleave', hide);
  plot.addEventListener('blur', hide);
  plot.addEventListener('keydown', (event) => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (step) { event.preventDefault(); show(at + step); }
  });
}
"""
"""JavaScript of the page: values under the pointer, and with the arrow keys."""
