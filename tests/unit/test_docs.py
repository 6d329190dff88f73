import ast
import re

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), (page, target)


def test_files_that_the_architecture_names_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = (
        "export",
        "handlers",
        "engine",
        "formats",
        "server",
        "models",
        "training",
        "replay",
        "observe",
    )
    made = {
        "model.pt",
        "signature.json",
        "certificate.json",
        "model-config.yaml",
        "warmup.npz",
        "layers.json",
        "baseline.json",
        "cases.npz",
    }
    for name in set(re.findall(r"`([\w.-]+\.(?:py|json|yaml|npz|pt))`", text)) - made:
        assert any((ROOT / room / name).exists() for room in rooms), name


def test_the_architecture_stays_on_one_page():
    assert len((ROOT / "docs" / "architecture.md").read_text().splitlines()) <= 100


def test_every_error_code_is_on_the_page_of_requests():
    page = (ROOT / "docs" / "requests.md").read_text()
    codes = set()
    for path in (ROOT / "handlers").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if named and node.func.id in ("RequestError", "ModelError"):
                codes |= {one.value for one in node.args[:1] if isinstance(one, ast.Constant)}
    assert len(codes) > 20
    assert {code for code in codes if f"`{code}`" not in page} == set()


@pytest.mark.parametrize(
    "page",
    ["requests", "deploy", "security", "operations", "access", "monitoring", "versions", "drift"],
)
def test_pages_stay_short(page):
    assert len((ROOT / "docs" / f"{page}.md").read_text().splitlines()) <= 120
