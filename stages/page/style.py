"""The page's style sheet: system fonts, light and dark, one column on a phone, ink-saving on paper."""

CSS = """
:root{color-scheme:light dark;--page:#f8f7f4;--card:#fff;--ink:#1c1b19;--soft:#5d5b55;--line:#e2dfd8;--grid:#ebe8e2;--track:#f0eee9;
--good:#1a7440;--bad:#b3261e;--warn:#8a5300;--warnbg:#fff3dc;--brand:#9a5217;
--teacher:#3d3c38;--baseline:#9b978d;--student:#2a6fc9;--model:#2a6fc9;--onnx:#14947f;--engine:#dd5a1f;
--t0:#2a6fc9;--t1:#dd5a1f;--t2:#14947f;--t3:#b98900;--t4:#8250c4;--t5:#c2417c}
@media(prefers-color-scheme:dark){:root{--page:#131312;--card:#1c1c1a;--ink:#efede8;--soft:#a8a59d;--line:#33322f;--grid:#2a2927;
--track:#2a2927;
--good:#6cc78d;--bad:#ff8a80;--warn:#f3c26b;--warnbg:#33280f;--brand:#e0a06a;
--teacher:#dcd9d1;--baseline:#85827a;--student:#5b9bec;--model:#5b9bec;--onnx:#35b9a2;--engine:#f08250;
--t0:#5b9bec;--t1:#f08250;--t2:#35b9a2;--t3:#dcb23c;--t4:#ab86e6;--t5:#e57aa8}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 24px 64px}
header,section{margin:0 0 40px}
h1{font-size:26px;line-height:1.2;margin:2px 0 4px;font-weight:650;overflow-wrap:anywhere}
h2{font-size:19px;line-height:1.3;margin:0 0 4px;font-weight:650}
h3{font-size:14px;line-height:1.35;margin:0 0 6px;font-weight:600}
p{margin:0 0 12px;max-width:84ch;text-wrap:pretty}
p.sub{margin:8px 0 0}
.brand{font-size:12px;letter-spacing:.09em;text-transform:uppercase;color:var(--brand);font-weight:650}
.soft,.say{color:var(--soft)}
.say{margin-bottom:14px}
.verdict{background:var(--card);border:1px solid var(--line);border-left:5px solid var(--soft);border-radius:8px;padding:14px 18px;
margin:16px 0 12px;
font-size:19px;line-height:1.4;font-weight:550;max-width:none;overflow-wrap:anywhere}
.verdict.is-passed{border-left-color:var(--good)}.verdict.is-failed,.verdict.is-unfinished{border-left-color:var(--bad)}
.verdict .sub{font-size:14px;margin-top:6px}.verdict.is-undecided{border-left-color:var(--warn)}
.badge{display:block;background:var(--warnbg);color:var(--warn);border-radius:6px;padding:7px 12px;margin:0 0 10px;font-size:14px;
font-weight:550;max-width:none}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:12px;margin-top:14px}
.card,.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:14px 16px;min-width:0}
.tile b{display:block;font-size:26px;line-height:1.2;font-weight:650;letter-spacing:-.01em}
.tile b span{font-size:14px;font-weight:500;color:var(--soft);letter-spacing:0}
.tile small{color:var(--soft);font-size:13px;line-height:1.4;display:block;margin-top:4px}
.wide{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:left;padding:8px 10px;border-top:1px solid var(--line);vertical-align:top}
thead tr:first-child th{border-top:0}
thead th{font-size:12px;line-height:1.35;color:var(--soft);font-weight:550;vertical-align:bottom}
tbody th{font-weight:600}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
td.n{white-space:nowrap}
th.group{text-align:center;border-left:1px solid var(--line)}
td.first,th.first{border-left:1px solid var(--line)}
td.key{font-weight:650}
.sub{display:block;max-width:84ch;font-weight:400;font-size:12px;color:var(--soft);line-height:1.4;overflow-wrap:anywhere}
.models th[scope=row]{min-width:150px}
.models tbody th,.models thead .corner{position:sticky;left:0;background:var(--card)}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:12.5px}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:10px 0 0;line-height:1.45}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(310px,100%),1fr));gap:14px}
.pairs{grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr))}
.chart{display:block;width:100%;max-width:440px;height:auto;margin:0 auto}
svg text{fill:var(--ink);font-family:inherit}
text.tick{font-size:11px;fill:var(--soft);font-variant-numeric:tabular-nums}
text.axis{font-size:11.5px;fill:var(--soft)}
text.label{font-size:12px}
.grid{stroke:var(--grid);stroke-width:1}.base{stroke:var(--soft);stroke-width:1;opacity:.6}
.leader{stroke:var(--soft);stroke-width:.8;fill:none}
.mark{stroke:var(--card);stroke-width:1.5}
.s-teacher{fill:var(--teacher);--c:var(--teacher)}.s-baseline{fill:var(--baseline);--c:var(--baseline)}.s-student{fill:var(--student);
--c:var(--student)}
.s-model{fill:var(--model);--c:var(--model)}.s-onnx{fill:var(--onnx);--c:var(--onnx)}.s-engine{fill:var(--engine);--c:var(--engine)}
.t-0{--c:var(--t0)}.t-1{--c:var(--t1)}.t-2{--c:var(--t2)}.t-3{--c:var(--t3)}.t-4{--c:var(--t4)}.t-5{--c:var(--t5)}.t-total{--c:var(--ink)}
.curve{fill:none;stroke:var(--c);stroke-width:1.8;stroke-linejoin:round}
.curve.s-baseline{stroke-dasharray:5 3}
.dot{fill:var(--c)}
.dot.hollow{fill:var(--card);stroke:var(--c);stroke-width:1.6}
.band{fill:var(--model);opacity:.14}.centre{stroke:var(--model);stroke-width:1.2}
.limit{stroke:var(--bad);--c:var(--bad);stroke-width:1.6}.half{stroke:var(--warn);--c:var(--warn);stroke-width:1.4;stroke-dasharray:6 4}
.over{paint-order:stroke;stroke:var(--card);stroke-width:4px}
.look{stroke:var(--soft);stroke-width:1;stroke-dasharray:1 4}
.reach{stroke:var(--c);stroke-width:2.2}
.swatch{vertical-align:-2px;margin-right:5px;flex:none}
.legend{display:flex;flex-wrap:wrap;gap:3px 14px;font-size:13px;margin:0 0 8px;color:var(--soft);max-width:none}
.legend span{white-space:nowrap}
.classes{columns:2;column-gap:40px}
.class{display:grid;grid-template-columns:minmax(92px,26%) 1fr 40px 44px;gap:10px;align-items:center;break-inside:avoid;padding:5px 0;
font-size:13px}
.class .who{line-height:1.25;overflow-wrap:anywhere}
.class .n{text-align:right;font-variant-numeric:tabular-nums}
.bars{width:100%;display:block;border-radius:2px}
.track{fill:var(--track)}
.chip{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px;border:1px solid rgba(128,128,128,.5);
vertical-align:-1px}
.scene{margin:0 0 14px}
.scene h3 span{font-weight:400;color:var(--soft)}
.shots{display:grid;grid-template-columns:repeat(4,1fr);gap:10px}
figure{margin:0;min-width:0}
figure img{display:block;width:100%;height:auto;border-radius:4px;background:var(--track)}
figure img.map{image-rendering:pixelated}
figcaption{font-size:12.5px;line-height:1.35;color:var(--soft);margin-top:3px}
.mark-word{white-space:nowrap;font-weight:600}.yes{color:var(--good)}.no{color:var(--bad)}.unsure{color:var(--warn)}
.hop{min-width:70px;height:9px;margin-top:6px}.bar-loses{fill:var(--bad)}.bar-hop{fill:var(--engine)}.hops{min-width:760px}
.graphbox{padding:14px}
.graph{display:block}
.arrow{fill:none;stroke:var(--soft);stroke-width:1.2;opacity:.75}
.box{fill:var(--card);stroke:var(--soft);stroke-width:1.2}
.is-kept.box{stroke-dasharray:4 3}.box.is-failed,.box.is-stopped{stroke:var(--bad);stroke-width:2}.box.is-missing{opacity:.45;
stroke-dasharray:1 3}
.boxname{font-size:13px;font-weight:600}.boxkind{font-size:11px;fill:var(--soft)!important}
.facts{columns:2;column-gap:40px;margin:0;font-size:13.5px}
.facts div{display:flex;gap:12px;break-inside:avoid;padding:3px 0;border-bottom:1px solid var(--line)}
.facts dt{color:var(--soft);flex:0 0 38%;overflow-wrap:anywhere}.facts dd{margin:0;overflow-wrap:anywhere;min-width:0}
details{margin-top:12px}summary{cursor:pointer;color:var(--soft);font-size:13.5px}
details .wide{margin-top:8px}
ul.notes{margin:0;padding-left:20px;font-size:14px;overflow-wrap:anywhere}
.gate{min-width:760px}.gate td.key{white-space:nowrap}.line{display:block;white-space:nowrap}.line-in{white-space:nowrap;color:var(--ink)}
.drawn{display:block;width:150px;height:34px}.refused{fill:var(--bad);opacity:.22}.bound{stroke:var(--ink);stroke-width:1.5}
.drawn .reach{stroke-width:2}.o-yes{--c:var(--good)}.o-no{--c:var(--bad)}.o-unsure{--c:var(--warn)}
.why{margin-top:22px}.why h3{font-size:15.5px;overflow-wrap:anywhere}
h4{font-size:14px;line-height:1.35;margin:0 0 4px;font-weight:400;overflow-wrap:anywhere}
h4 span{color:var(--soft)}.why .say{margin-bottom:8px}.shots.six,.shots.five{grid-template-columns:repeat(3,1fr)}
.key-of{align-items:center;margin:18px 0 0}.key-of span{white-space:normal}
.kind-worse{fill:rgb(230,0,92)}.kind-better{fill:rgb(0,92,175)}.kind-other{fill:rgb(240,178,0)}
.stripes{stroke:#fff;stroke-width:2.4}.dots{fill:rgb(60,44,0)}
.stages{min-width:640px}
.gate td,.error{overflow-wrap:anywhere}
.error{color:var(--bad);white-space:pre-line}
@media(max-width:700px){main{padding:18px 14px 40px}h1{font-size:22px}.verdict{font-size:17px}.tiles{grid-template-columns:1fr 1fr}
.tile b{font-size:22px}
.classes,.facts{columns:1}.shots,.shots.six,.shots.five{grid-template-columns:1fr 1fr}
.class{grid-template-columns:minmax(80px,28%) 1fr 38px 42px;gap:8px}
th,td{padding:7px 8px}.models th[scope=row]{min-width:118px}}
@media(max-width:700px){.gate{min-width:0}.gate thead{position:absolute;left:-9999px}.gate tr{display:grid;grid-template-columns:auto 1fr;
gap:4px 12px;padding:10px;border-top:1px solid var(--line)}.gate td{padding:0;border:0;text-align:left}.gate td:nth-child(2){order:3;
grid-column:1/-1}.gate td:nth-child(3){order:2}.gate td.key{text-align:right}.gate td:nth-child(4){order:4}.gate td:nth-child(5){order:5}
.six figure:nth-child(3){order:5}.six figure:nth-child(4){order:3}.six figure:nth-child(5){order:4}.six figure:nth-child(6){order:6}}
@media print{:root{--page:#fff}main{padding:0;max-width:none}
body{font-size:11px;print-color-adjust:exact;-webkit-print-color-adjust:exact}
.card,.tile,.scene,figure,tr{break-inside:avoid}h2,h3{break-after:avoid}.wide{overflow:visible}
table,thead th,.models .sub,.gate .sub{font-size:9px}th,td{padding:4px}.models th[scope=row],.gate,.stages{min-width:0}
.tiles{grid-template-columns:repeat(4,1fr)}.charts{grid-template-columns:repeat(3,1fr)}.pairs{grid-template-columns:1fr 1fr}
.graph{max-width:100%;height:auto}}
"""
