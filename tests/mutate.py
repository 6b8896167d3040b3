"""Breaks `src/keel/functional/` in one place at a time and expects the tests to notice.

    python tests/mutate.py [--file policy.py] [--jobs 2] [--since REF] [--list]

Every mutant is run against the file's own tests and the laws, in a fork of one process that has imported everything
heavy. A survivor is a missing test, or an equivalent program: then `equivalent_mutants.toml` must say why. Left alone
are docstrings, type annotations, the wording of errors (their tests read it), `device=` (one device here) and the
order of a tuple that `in` only searches.
"""

import argparse
import ast
import contextlib
import copy
import gc
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOM = ROOT / "src" / "keel" / "functional"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
CPU_LIMIT_S = 30
"""What no mutant needs unless it loops for ever; processor time, so that a busy machine kills nobody."""

BINARY = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.BitAnd: ast.BitOr,
          ast.BitOr: ast.BitAnd, ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult}
COMPARED = {ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE),
            ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,),
            ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,)}
RENAMED = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "clamp_min": "clamp_max",
           "clamp_max": "clamp_min", "argmax": "argmin", "argmin": "argmax", "amax": "amin",
           "amin": "amax", "zeros_like": "ones_like",
           "ones_like": "zeros_like", "zeros": "ones", "new_zeros": "new_ones", "expm1": "exp", "rsqrt": "sqrt",
           "float64": "float32", "all": "any", "any": "all", "sum": "mean", "mean": "sum"}
COMMUTATIVE = {"min", "max", "minimum", "maximum"}
KEPT_CALLS = {"raises", "range", "len", "float", "bool", "int", "tuple", "set"}


@dataclass(frozen=True)
class Mutant:
    """One changed program: where, the statement before and after, and the whole file."""

    file: str
    function: str
    line: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}\n  - {self.before}\n  + {self.after}"


def main() -> int:
    """Run what was asked for, print the survivors, exit with 1 if there are any."""
    options = parsed_options()
    files = [ROOM / options.file] if options.file else sorted(ROOM.glob("*.py"))
    mutants = [mutant for file in files for mutant in mutants_of(file)]
    if options.since:
        changed = {file.name: changed_lines(file, options.since) for file in files}
        mutants = [mutant for mutant in mutants if mutant.line in changed[mutant.file]]
    equivalent = tomllib.loads(EQUIVALENT.read_text())["mutant"] if EQUIVALENT.exists() else []
    known = {(row["file"], row["before"], row["after"]) for row in equivalent if row["why"]}
    todo = [mutant for mutant in mutants if (mutant.file, mutant.before, mutant.after) not in known]
    if options.list:
        print("\n".join(map(str, todo)))
        return 0
    stale = [] if options.file or options.since else sorted(
        known - {(mutant.file, mutant.before, mutant.after) for mutant in mutants})
    for row in stale:
        print(f"{EQUIVALENT.name}: no such mutant any more: {row}")
    start = time.monotonic()
    survivors = [mutant for mutant, killed in run_all(todo, options.jobs) if not killed]
    for mutant in sorted(survivors, key=lambda m: (m.file, m.line)):
        print(f"SURVIVED {mutant}")
    print(f"{len(todo)} mutants, {len(todo) - len(survivors)} killed, {len(survivors)} survived, "
          f"{len(mutants) - len(todo)} equivalent, {time.monotonic() - start:.0f} s")
    return 1 if survivors or stale else 0


def parsed_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Mutation tests of src/keel/functional")
    parser.add_argument("--file", help="only this file of the room, e.g. policy.py")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--since", help="only lines changed since this commit")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    return parser.parse_args()


def changed_lines(file: Path, since: str) -> set[int]:
    """Line numbers of the file that differ from a commit."""
    diff = subprocess.run(["git", "diff", "-U0", since, "--", str(file)], cwd=ROOT, capture_output=True, text=True,
                          check=True).stdout
    lines: set[int] = set()
    for first, count in re.findall(r"^@@ \S+ \+(\d+)(?:,(\d+))? @@", diff, re.MULTILINE):
        lines.update(range(int(first), int(first) + int(count or 1)))
    return lines


# --- making mutants ------------------------------------------------------------------------------------------------


def mutants_of(file: Path) -> Iterator[Mutant]:
    """Every single change of one file, each different from the original and from the others."""
    source = file.read_text()
    tree = ast.parse(source)
    seen = {ast.unparse(tree)}
    for function, statement in statements(tree):
        n_sites = len(list(sites(statement)))
        for index in range(n_sites):
            n_variants = len(variants(list(sites(statement))[index]))
            for choice in range(n_variants):
                changed_tree, changed = with_change(tree, statement, index, choice)
                text = ast.unparse(ast.fix_missing_locations(changed_tree))
                if text not in seen:
                    seen.add(text)
                    yield Mutant(file.name, function, sites_line(statement, index), shown(statement), shown(changed),
                                 text)


def statements(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Every statement that computes something, with the name of its function."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            yield function.name, function
            for node in ast.walk(function):
                if isinstance(node, ast.stmt) and node is not function and not is_docstring(node):
                    yield function.name, node


def is_docstring(node: ast.stmt) -> bool:
    """A bare string is text for people."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def sites(statement: ast.stmt) -> Iterator[ast.AST]:
    """The nodes of one statement that can be changed: not those of statements inside it, annotations or raises."""
    if isinstance(statement, ast.Raise):
        yield statement
        return
    yield statement
    if isinstance(statement, ast.FunctionDef):
        parts: list[ast.AST] = [d for d in (*statement.args.defaults, *statement.args.kw_defaults) if d is not None]
    else:
        skipped = ("annotation", "returns")
        parts = [child for name, field in ast.iter_fields(statement) if name not in skipped
                 for child in (field if isinstance(field, list) else [field])
                 if isinstance(child, ast.AST) and not isinstance(child, ast.stmt)]
    searched: list[ast.AST] = []
    while parts:
        node = parts.pop(0)
        if isinstance(node, ast.Compare) and all(isinstance(op, ast.In | ast.NotIn) for op in node.ops):
            searched += node.comparators
        if not (isinstance(node, ast.Tuple) and node in searched):
            yield node
        parts = [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr_context)] + parts


def variants(node: ast.AST) -> list[ast.AST]:
    """What a node can be turned into. Each is one mistake somebody could make."""
    out: list[ast.AST] = []
    match node:
        case ast.If() | ast.While():
            out = [replaced(node, test=ast.Constant(False)), replaced(node, test=ast.Constant(True))]
        case ast.Assign() | ast.AugAssign():
            out = [ast.Pass()]
        case ast.Raise():
            out = [ast.Pass()]
        case ast.BinOp():
            other = BINARY.get(type(node.op))
            out = [*([replaced(node, op=other())] if other else []), node.left, node.right]
        case ast.UnaryOp():  # the last of two dimensions is -1 and 1 alike
            out = [] if ast.unparse(node) == "-1" else [node.operand]
        case ast.BoolOp():
            other_op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            out = [replaced(node, op=other_op), *node.values]
        case ast.Compare():
            out = [replaced(node, ops=[*node.ops[:i], other(), *node.ops[i + 1 :]])
                    for i, op in enumerate(node.ops) for other in COMPARED[type(op)]]
        case ast.IfExp():
            out = [node.body, node.orelse]
        case ast.Tuple() if isinstance(node.ctx, ast.Load) and len(node.elts) > 1:
            out = [replaced(node, elts=[node.elts[1], node.elts[0], *node.elts[2:]])]
        case ast.Attribute(attr=name) if name in RENAMED:
            out = [replaced(node, attr=RENAMED[name])]
        case ast.Name(id=name) if name in RENAMED:
            out = [replaced(node, id=RENAMED[name])]
        case ast.Constant():
            out = constants(node.value)
        case ast.Call():
            out = calls(node)
    return out


def constants(value: object) -> list[ast.AST]:
    """Other values for a literal: off by one, doubled, negated. Text changes only where it is a key."""
    if isinstance(value, bool):
        return [ast.Constant(not value)]
    if isinstance(value, int):
        return [ast.Constant(value + 1), ast.UnaryOp(ast.USub(), ast.Constant(1)) if value == 0
                else ast.Constant(value - 1)]
    if isinstance(value, float):
        return [ast.Constant(value * 2 if value else 1.0), ast.Constant(value / 2 if value else -1.0)]
    return [ast.Constant(f"{value}?")] if isinstance(value, str) and value.isprintable() else []


def calls(node: ast.Call) -> list[ast.AST]:
    """A method or function dropped, arguments exchanged or left out, the two sides of a `where` confused."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    out: list[ast.AST] = []
    if isinstance(node.func, ast.Attribute) and not isinstance(node.func.value, ast.Name | ast.Attribute):
        out.append(node.func.value)  # (...).method(...) -> (...)
    elif isinstance(node.func, ast.Attribute) and not is_module(node.func.value):
        out.append(node.func.value)  # x.method(...) -> x
    elif node.args and name not in KEPT_CALLS:
        out.append(node.args[0])  # f(x, ...) -> x
    if name == "where" and len(node.args) == 3:
        out += [node.args[1], node.args[2], replaced(node, args=[node.args[0], node.args[2], node.args[1]])]
    elif len(node.args) == 2 and name not in COMMUTATIVE:
        out.append(replaced(node, args=node.args[::-1]))
    for i, keyword in enumerate(node.keywords):
        if keyword.arg != "device":
            out.append(replaced(node, keywords=node.keywords[:i] + node.keywords[i + 1 :]))
    return out


def is_module(node: ast.expr) -> bool:
    """`torch` in torch.where(...), where there is no tensor before the dot."""
    return ast.unparse(node).split(".")[0] in {"torch", "math"}


def replaced(node: ast.AST, **fields: object) -> ast.AST:
    """A shallow copy with some fields changed."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def with_change(tree: ast.Module, statement: ast.stmt, index: int, choice: int) -> tuple[ast.Module, ast.stmt]:
    """A copy of the tree with one site of one statement replaced, and that statement."""
    memo: dict[int, object] = {}
    tree = copy.deepcopy(tree, memo)
    target = memo[id(statement)]
    site = list(sites(target))[index]
    new = variants(site)[choice]

    class Swap(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return new if node is site else self.generic_visit(node)

    changed_tree = Swap().visit(tree)
    return changed_tree, new if site is target else target


def sites_line(statement: ast.stmt, index: int) -> int:
    """The line a site is on; what has no place of its own stands where its statement does."""
    return getattr(list(sites(statement))[index], "lineno", statement.lineno)


def shown(statement: ast.AST) -> str:
    """One statement on one line, without the bodies of blocks."""
    statement = copy.copy(statement)
    if isinstance(statement, ast.FunctionDef):
        return f"def {statement.name}({ast.unparse(statement.args)})"
    if isinstance(statement, ast.If | ast.While | ast.For):
        statement.body, statement.orelse = [ast.Expr(ast.Constant(...))], []
    return " ".join(ast.unparse(ast.fix_missing_locations(statement)).split())


# --- running them --------------------------------------------------------------------------------------------------


def run_all(mutants: list[Mutant], jobs: int) -> Iterator[tuple[Mutant, bool]]:
    """Each mutant with whether the tests noticed it, a few at a time."""
    preload()
    for file in sorted({mutant.file for mutant in mutants}):
        original = Mutant(file, "", 0, "", "", (ROOM / file).read_text())
        child = start(original)
        while (status := finished(child)) is None:
            time.sleep(0.02)
        if status != 0:
            sys.exit(f"{file}: its tests fail without any mutation; run {tests_of(file)}")
    waiting, running = mutants[::-1], {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            running[start(mutant)] = mutant
        for child in list(running):
            if (status := finished(child)) is not None:
                yield running.pop(child), status != 0
        time.sleep(0.005)


def preload() -> None:
    """Import and use once what is slow to import, so that a fork is ready in milliseconds; nothing of keel."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
    import beartype
    import hypothesis.internal.conjecture.engine
    import jaxtyping
    import pytest
    import scipy.stats
    import torch

    torch.set_num_threads(1)
    torch.testing.assert_close(torch.ones(1), torch.ones(1))  # loads half of torch.distributed
    loaded = (beartype, hypothesis, jaxtyping, pytest, scipy)
    assert all(loaded) and "keel" not in sys.modules
    gc.freeze()  # the parent's objects are no business of the child's collector


def tests_of(file: str) -> list[list[str]]:
    """Arguments for pytest, run after run: the file's own tests, then the laws for the rows that call this file."""
    tests = ROOT / "tests"
    own = tests / "functional" / f"test_{file}"
    rows = re.findall(r'"(\w+)": Row\(\s*(?:partial\()?(\w+)\.', (tests / "conformance" / "losses.py").read_text())
    names = [name for name, module in rows if file in (f"{module}.py", "masked.py")]
    laws = [[str(tests / "conformance" / "test_laws.py"), "-k", " or ".join(f"{name}]" for name in names)]]
    return ([[str(own)]] if own.exists() else []) + (laws if names else [])


@dataclass(frozen=True)
class Child:
    """A process of ours that runs the tests of one mutant."""

    pid: int
    folder: Path


def start(mutant: Mutant) -> Child:
    """Fork; the child reads keel from a copy in which one file is the mutant."""
    folder = Path(tempfile.mkdtemp(prefix="keel-mutant-"))
    package = folder / "keel"
    shutil.copytree(ROOM, package / "functional", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOM.parent.glob("*.py"):
        shutil.copy(file, package)
    (package / "functional" / mutant.file).write_text(mutant.source)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            status = child_main(folder, mutant)
        os._exit(status)
    return Child(pid, folder)


def child_main(folder: Path, mutant: Mutant) -> int:
    """Run the tests silently against the copy; 0 if they all pass."""
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.chdir(ROOT)
    sys.dont_write_bytecode = not mutant.function == ""
    sys.path.insert(0, str(folder))
    status = 0
    for arguments in tests_of(mutant.file):
        status = status or int(pytest.main(["-x", "-q", "--tb=no", "--assert=plain", "-p", "no:cacheprovider",
                                            "--hypothesis-profile=mutants", *arguments]))
    where = sys.modules["keel.functional"].__file__ or ""
    return status if where.startswith(str(folder)) else 99


def finished(child: Child) -> int | None:
    """Its exit status, negative if a signal ended it; None while it runs."""
    pid, status = os.waitpid(child.pid, os.WNOHANG)
    if pid == 0:
        return None
    shutil.rmtree(child.folder, ignore_errors=True)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
