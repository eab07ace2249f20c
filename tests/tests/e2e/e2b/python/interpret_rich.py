"""What only a Jupyter kernel shows: plots, tables, and the rest of the forms that the SDK has fields for."""
import base64
from e2b_code_interpreter import Sandbox

s = Sandbox.create(timeout=900)
shown = []
plot = s.run_code("""
import matplotlib.pyplot as plt
print("before")
plt.plot([1, 3, 2]); plt.title("t"); plt.show()
"plotted"
""", on_result=shown.append, timeout=0)
assert plot.error is None and shown == plot.results and len(shown) == 2, plot
png = base64.b64decode(shown[0].png, validate=True)
assert png.startswith(b"\x89PNG\r\n\x1a\n") and len(png) > 1000 and "Figure" in shown[0].text, shown[0]
assert not shown[0].is_main_result and "png" in shown[0].formats() and plot.text == "plotted"
# Also one that nothing shows.
assert s.run_code("plt.plot([1, 2]); None", timeout=0).results[0].png

table = s.run_code("import pandas\npandas.DataFrame({'name': ['a', 'b'], 'n': [1, 2]})", timeout=0).results[0]
assert table.is_main_result and "<table" in table.html and "name" in table.text, table
assert set(table.formats()) >= {"text", "html"}

forms = s.run_code("""
import base64
from IPython.display import HTML, JSON, SVG, Javascript, Latex, Markdown, display
display(HTML("<b>h</b>")); display(Markdown("# m")); display(SVG("<svg xmlns='http://www.w3.org/2000/svg'/>"))
display(Latex("$x$")); display(JSON({"a": [1]})); display(Javascript("f()"))
display({"image/jpeg": base64.b64encode(b"\\xff\\xd8j").decode(), "application/pdf": base64.b64encode(b"%PDF").decode()}, raw=True)
display({"application/vnd.plotly.v1+json": {"p": 1}, "application/x-own": base64.b64encode(b"own").decode()}, raw=True)
display({"e2b/data": {"n": {"0": 1}}, "text/plain": "'quoted'"}, raw=True)
""", timeout=0)
assert forms.error is None, forms.error
html, markdown, svg, latex, obj, script, bytes_, extra, data = forms.results
assert (html.html, markdown.markdown, latex.latex, obj.json, script.javascript) == ("<b>h</b>", "# m", "$x$", {"a": [1]}, "f()")
assert svg.svg.startswith("<svg") and (base64.b64decode(bytes_.jpeg), base64.b64decode(bytes_.pdf)) == (b"\xff\xd8j", b"%PDF")
assert extra.extra == {"application/vnd.plotly.v1+json": {"p": 1}, "application/x-own": base64.b64encode(b"own").decode()}, extra.extra
assert (data.data, data.text) == ({"n": {"0": 1}}, "quoted") and not any(r.is_main_result for r in forms.results)

assert s.run_code("import asyncio\nawait asyncio.sleep(0, 'awaited')", timeout=0).text == "awaited"
# Variables also of what awaits, and of a kernel that was interrupted.
assert s.run_code("import os\nawait asyncio.sleep(0)\nos.environ['OWN']", envs={"OWN": "1"}, timeout=0).text == "1"
stop = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time; time.sleep(100000)"
assert s.run_code(stop, envs={"OWN": "1"}, timeout=0).error.name == "KeyboardInterrupt"
assert s.run_code("os.environ.get('OWN')", timeout=0).results == []
# More than is kept: the rest is left out, and told.
much = s.run_code("print('x' * 18_000_000)", timeout=0)
assert 15_000_000 < sum(map(len, much.logs.stdout)) < 17_000_000 and "left out" in much.logs.stderr[-1], much.logs.stderr
assert s.kill()
print("ok")
