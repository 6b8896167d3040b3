"""The rules of the house (design/style.md) that a program can check. Each test lists every offender at once."""

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KEEL = ROOT / "src" / "keel"
TESTS = ROOT / "tests"
METHODS = ROOT / "docs" / "methods"

ROOMS = {
    "errors": 0, "rng": 0, "config": 0, "runs": 0, "batches": 0, "progress": 0, "endpoint": 0, "named": 0,
    "functional": 1,
    "data": 2, "models": 2,
    "rollout": 3, "train": 3, "bench": 3, "persona": 3, "sandbox": 3,
    "online": 4,
    "recipes": 5, "report": 5, "serve": 5,
    "experiments": 6,
    "cli": 7,
    "__main__": 8,
}
FORBIDDEN_NAMES = {"utils", "util", "common", "base", "misc", "helpers", "tools", "manager"}
EXCEPTIONS = {"Exception", "ValueError", "KeyError", "TypeError", "RuntimeError", "OSError"}
MAY_CALL_SUPER = EXCEPTIONS | {"Module", "Function", "Cache", "CacheLayerMixin"}
"""torch's and transformers' own base classes, which have to be initialised, and exceptions."""
CALLED_BY_LIBRARIES = {"_attention"}
"""transformers calls it with whatever an architecture has to say."""
SHORTEST_FRAGMENT = 12

FILES = {path.relative_to(KEEL): path for path in sorted(KEEL.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
TEST_FILES = sorted(path for path in TESTS.rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)


def room_of(name: Path) -> str:
    """The folder directly under keel, or the file itself."""
    return name.parts[0].removesuffix(".py")


def nodes(kind: type | tuple[type, ...]) -> Iterator[tuple[Path, ast.AST]]:
    """Every node of a kind in the whole package, with its file."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, kind):
                yield name, node


def functions() -> Iterator[tuple[Path, ast.FunctionDef]]:
    """Every function and method."""
    yield from nodes((ast.FunctionDef, ast.AsyncFunctionDef))  # type: ignore[misc]


def at(name: Path, node: ast.AST, what: str = "") -> str:
    """One line of complaint."""
    return f"{name}:{getattr(node, 'lineno', 0)} {what}".rstrip()


def expect_none(offenders: list[str], rule: str) -> None:
    """Fail with the rule and all who break it."""
    if offenders:
        pytest.fail(f"{rule}\n  " + "\n  ".join(sorted(dict.fromkeys(offenders))), pytrace=False)


# --- rooms -----------------------------------------------------------------------------------------------------------


def imported_modules(name: Path, tree: ast.Module) -> Iterator[tuple[ast.AST, tuple[str, ...]]]:
    """Modules of keel that a file imports anywhere in it, as dotted parts after `keel`."""
    package = ("keel", *name.parts[:-1])
    for node in ast.walk(tree):
        found: list[tuple[str, ...]] = []
        if isinstance(node, ast.Import):
            found = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = (*start, *(node.module.split(".") if node.module else ()))
            found = [(*base, alias.name) for alias in node.names]
        yield from ((node, parts[1:]) for parts in found
                    if parts[0] == "keel" and len(parts) > 1 and parts[1] != "__version__")


def test_every_file_is_in_a_known_room() -> None:
    tops = {path.name.removesuffix(".py") for path in KEEL.iterdir() if path.name not in {"__pycache__", "__init__.py"}}
    expect_none(sorted(tops - set(ROOMS) - {"presets", "py.typed"}), "not a room of the house (style.md, section 2):")


def test_imports_go_down_only() -> None:
    offenders = []
    for name, tree in TREES.items():
        own = room_of(name)
        if own == "__init__":
            offenders += [at(name, node, "keel/__init__.py imports from its rooms") for node, _ in
                          imported_modules(name, tree)]
            continue
        for node, (target, *_) in imported_modules(name, tree):
            same_floor = target == own or (ROOMS.get(own) == 0 and ROOMS.get(target) == 0)
            if not same_floor and ROOMS.get(target, 99) >= ROOMS.get(own, 99):
                offenders.append(at(name, node, f"{own} ({ROOMS.get(own)}) imports {target} ({ROOMS.get(target)})"))
    expect_none(offenders, "a file imports only rooms with a smaller number, also inside functions:")


def test_functional_imports_nothing_else_of_keel() -> None:
    offenders = [at(name, node) for name, tree in TREES.items() if room_of(name) == "functional"
                 for node, (target, *_) in imported_modules(name, tree) if target != "functional"]
    expect_none(offenders, "functional/ imports something else of keel:")


def test_recipes_do_not_import_recipes() -> None:
    offenders = [at(name, node, ".".join(parts)) for name, tree in TREES.items()
                 if room_of(name) == "recipes" and name.name != "__init__.py"
                 for node, parts in imported_modules(name, tree) if parts[0] == "recipes"]
    expect_none(offenders, "a recipe imports a recipe:")


def test_two_folder_levels_at_most() -> None:
    expect_none([str(name) for name in FILES if len(name.parts) > 3], "deeper than two folders:")


def test_no_forbidden_room_names() -> None:
    offenders = [str(name) for name in FILES for part in name.parts if part.removesuffix(".py") in FORBIDDEN_NAMES]
    expect_none(offenders, "these names are not rooms; say what the code does:")


def test_presets_hold_toml_only() -> None:
    offenders = [str(path.relative_to(KEEL)) for path in (KEEL / "presets").rglob("*")
                 if path.is_file() and path.suffix != ".toml"]
    expect_none(offenders, "keel/presets holds TOML only:")


# --- size and shape --------------------------------------------------------------------------------------------------


def test_at_most_eight_parameters() -> None:
    offenders = []
    for name, node in functions():
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = sum(argument.arg not in {"self", "cls"} for argument in arguments) + (node.args.vararg is not None)
        if count > 8:
            offenders.append(at(name, node, f"{node.name} has {count} parameters"))
    expect_none(offenders, "more than eight parameters:")


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a function without those of functions inside it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, Function | ast.Lambda | ast.ClassDef):
            yield child
            yield from own_nodes(child)


def test_no_tuple_return_longer_than_three() -> None:
    offenders = []
    for name, node in functions():
        annotation = node.returns
        if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in {"tuple", "Tuple"}:
            elements = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
            if len(elements) > 3:
                offenders.append(at(name, node, f"{node.name} -> {ast.unparse(annotation)}"))
        # How many gradients `backward` of an autograd function returns is torch's decision.
        offenders += [at(name, child, f"{node.name} returns {len(child.value.elts)} things")
                      for child in own_nodes(node) if isinstance(child, ast.Return) and node.name != "backward"
                      and isinstance(child.value, ast.Tuple) and len(child.value.elts) > 3]
    expect_none(offenders, "a tuple longer than three should be a frozen dataclass:")


def test_files_end_before_line_400() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()}
    expect_none([f"{name}: {n} lines" for name, n in lengths.items() if n > 400], "file longer than 400 lines:")


def test_functions_end_before_line_50() -> None:
    offenders = []
    for name, node in functions():
        limit = 120 if room_of(name) == "recipes" and node.name == "run" else 50
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > limit:
            offenders.append(at(name, node, f"{node.name}: {length} lines, limit {limit}"))
    expect_none(offenders, "function too long, docstring and signature included:")


def depth(node: ast.AST) -> int:
    """How many blocks deep the deepest statement is; an `elif` is as deep as its `if`."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, depth(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


def test_nesting_of_four_levels_at_most() -> None:
    offenders = [at(name, node, f"{node.name}: {depth(node)} levels") for name, node in functions() if depth(node) > 4]
    expect_none(offenders, "nested deeper than four levels:")


def test_no_kwargs() -> None:
    offenders = [at(name, node, node.name) for name, node in functions()
                 if node.args.kwarg is not None and node.name not in CALLED_BY_LIBRARIES]
    expect_none(offenders, "**kwargs hides what a function takes:")


def bases_by_class() -> dict[str, set[str]]:
    """Last part of the names of each class's bases, all of keel together."""
    return {node.name: {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
            for _, node in nodes(ast.ClassDef)}  # type: ignore[attr-defined]


def ancestors(name: str, bases: dict[str, set[str]]) -> set[str]:
    """All names a class derives from."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for base in sorted(bases.get(waiting.pop(), set()) - found):
            found.add(base)
            waiting.append(base)
    return found


def test_super_init_only_under_modules_and_exceptions() -> None:
    bases = bases_by_class()
    offenders = []
    for name, node in nodes(ast.ClassDef):
        calls = [child for child in ast.walk(node) if isinstance(child, ast.Call)
                 and ast.unparse(child.func) == "super().__init__"]
        if calls and not ancestors(node.name, bases) & MAY_CALL_SUPER:  # type: ignore[attr-defined]
            offenders.append(at(name, calls[0], node.name))  # type: ignore[attr-defined]
    expect_none(offenders, "super().__init__ belongs under the base classes of libraries and exceptions only:")


# --- papers ----------------------------------------------------------------------------------------------------------


def test_every_public_function_of_functional_names_its_source() -> None:
    offenders = [at(name, node, node.name) for name, node in functions()
                 if room_of(name) == "functional" and not node.name.startswith("_")
                 and not re.search(r"\bSource: \S", ast.get_docstring(node) or "")]
    expect_none(offenders, "no `Source:` line with paper and equation:")


def code_deviations() -> dict[str, str]:
    """Tags in the code, with where they stand."""
    return {tag: str(name) for name, path in FILES.items()
            for tag in re.findall(r"DEVIATION\(([\w-]+)\)", path.read_text(encoding="utf-8"))}


def documented_deviations(prefixes: set[str]) -> dict[str, str]:
    """Tags in the Deviations sections of the method pages, with the page."""
    found = {}
    for page in sorted(METHODS.glob("*.md")):
        for section in re.findall(r"^## Deviations\b.*?(?=^## |\Z)", page.read_text(encoding="utf-8"), re.M | re.S):
            tags = re.findall(r"(?<![\w-])([a-z][a-z_]*-\d+)(?![\w-])", section)
            found |= {tag: page.name for tag in tags if tag.rsplit("-", 1)[0] in prefixes | {page.stem}}
    return found


def test_deviations_are_on_the_doc_page_and_in_the_code() -> None:
    coded = code_deviations()
    documented = documented_deviations({tag.rsplit("-", 1)[0] for tag in coded})
    offenders = [f"{tag} ({where}) is on no page of docs/methods" for tag, where in coded.items()
                 if tag not in documented]
    offenders += [f"{tag} ({page}) is nowhere in the code" for tag, page in documented.items() if tag not in coded]
    expect_none(offenders, "DEVIATION tags must be the same in code and docs:")


def recipes() -> list[str]:
    """Names of the recipe files."""
    return [name.stem for name in FILES if room_of(name) == "recipes" and len(name.parts) == 2
            and not name.stem.startswith("_")]


def test_every_recipe_has_a_test_and_a_page() -> None:
    wanted = [path for name in recipes() for path in
              (TESTS / "recipes" / f"test_{name}.py", METHODS / f"{name}.md")]
    expect_none([str(path.relative_to(ROOT)) for path in wanted if not path.exists()], "a recipe without its")


# --- config ----------------------------------------------------------------------------------------------------------


def config_fields() -> Iterator[tuple[Path, ast.AnnAssign, str]]:
    """Every field of every Config, with its class's name."""
    bases = bases_by_class()
    for name, node in nodes(ast.ClassDef):
        if "Config" in ancestors(node.name, bases):  # type: ignore[attr-defined]
            for line in node.body:  # type: ignore[attr-defined]
                if isinstance(line, ast.AnnAssign) and not ast.unparse(line.annotation).startswith("ClassVar"):
                    yield name, line, node.name  # type: ignore[attr-defined]


def test_every_config_field_has_a_description() -> None:
    """A field that is a Config itself is described by its own fields; `--help` never shows it alone."""
    bases = bases_by_class()
    offenders = []
    for name, line, owner in config_fields():
        if "Config" in ancestors(ast.unparse(line.annotation), bases):
            continue
        texts = [keyword.value for keyword in getattr(line.value, "keywords", []) if keyword.arg == "description"]
        if not texts or not ast.unparse(texts[0]).strip("'\" "):
            offenders.append(at(name, line, f"{owner}.{ast.unparse(line.target)}"))
    expect_none(offenders, "a config field without Field(..., description=...):")


def test_every_config_field_is_read() -> None:
    read = {node.attr for _, node in nodes(ast.Attribute)}  # type: ignore[attr-defined]
    offenders = [at(name, line, f"{owner}.{ast.unparse(line.target)}") for name, line, owner in config_fields()
                 if ast.unparse(line.target) not in read]
    expect_none(offenders, "a config field that no code reads:")


# --- tests -----------------------------------------------------------------------------------------------------------


def is_number(node: ast.AST | None) -> bool:
    """A numeric literal, with or without a sign."""
    if isinstance(node, ast.UnaryOp):
        return is_number(node.operand)
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)


def test_no_inline_tolerance() -> None:
    offenders = []
    for path in TEST_FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            named = [k.arg for k in node.keywords if k.arg in {"atol", "rtol", "abs", "rel"} and is_number(k.value)]
            is_approx = ast.unparse(node.func).endswith("approx")
            if named or (is_approx and any(is_number(argument) for argument in node.args[1:])):
                offenders.append(at(path.relative_to(TESTS), node, ast.unparse(node)[:80]))
    expect_none(offenders, "a tolerance typed inline; name it in tests/tolerances.py:")


def message_chunks(node: ast.AST) -> list[str]:
    """The literal pieces of an error's text: strings, f-strings and what is joined with +."""
    match node:
        case ast.Constant(value=str() as text):
            return [text]
        case ast.JoinedStr():
            return [part.value for part in node.values if isinstance(part, ast.Constant)]
        case ast.BinOp(op=ast.Add()):
            return message_chunks(node.left) + message_chunks(node.right)
    return []


def fragments(chunk: str) -> set[str]:
    """All pieces of twelve characters; a shorter chunk is its own piece."""
    if len(chunk) <= SHORTEST_FRAGMENT:
        return {chunk}
    return {chunk[i : i + SHORTEST_FRAGMENT] for i in range(len(chunk) - SHORTEST_FRAGMENT + 1)}


def raised_messages() -> dict[str, set[str]]:
    """Where something is raised with words, and the fragments of these words that no other raise uses."""
    found = {}
    for name, node in nodes(ast.Raise):
        call = node.exc  # type: ignore[attr-defined]
        if isinstance(call, ast.Call) and call.args:
            chunks = [chunk for chunk in message_chunks(call.args[0]) if chunk.strip()]
            longest = [chunk for chunk in chunks if len(chunk) >= SHORTEST_FRAGMENT] or chunks
            if longest:
                pieces = set(itertools.chain.from_iterable(map(fragments, longest)))
                found[at(name, node, " ... ".join(chunks)[:90])] = pieces
    uses: dict[str, int] = {}
    for pieces in found.values():
        for piece in sorted(pieces):
            uses[piece] = uses.get(piece, 0) + 1
    return {where: {p for p in pieces if uses[p] == 1} or pieces for where, pieces in found.items()}


def test_every_raise_has_a_test_that_reads_its_message() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in TEST_FILES if path.name != Path(__file__).name)
    text = text.replace("\\", "")  # patterns for pytest.raises escape brackets and dots
    offenders = [where for where, pieces in raised_messages().items() if not any(piece in text for piece in pieces)]
    expect_none(offenders, "no test reads these messages:")


# --- determinism -----------------------------------------------------------------------------------------------------


def test_no_hash() -> None:
    offenders = [at(name, node) for name, node in nodes(ast.Call)
                 if isinstance(node.func, ast.Name) and node.func.id == "hash"]  # type: ignore[attr-defined]
    expect_none(offenders, "hash() differs from process to process; use rng.digest:")


GLOBAL_SEED = re.compile(
    r"(torch(\.random|\.cuda|\.mps|\.xpu)?\.(manual_seed|manual_seed_all|seed|seed_all)|"
    r"random\.seed|(np|numpy)\.random\.seed|(transformers\.)?set_seed|seed_everything)")


def test_no_global_seed() -> None:
    offenders = [at(name, node, ast.unparse(node)[:80]) for name, node in nodes(ast.Call)
                 if GLOBAL_SEED.fullmatch(ast.unparse(node.func))]  # type: ignore[attr-defined]
    expect_none(offenders, "a global seed; draw from rng.stream instead:")


def is_set(node: ast.AST, names: set[str]) -> bool:
    """A set by its looks: a display, a comprehension, set(...), an operation on one, or a name that was given one."""
    match node:
        case ast.Set() | ast.SetComp():
            return True
        case ast.Name(id=name):
            return name in names
        case ast.Call(func=ast.Name(id="set" | "frozenset")):
            return True
        case ast.Call(func=ast.Attribute(attr="union" | "intersection" | "difference" | "symmetric_difference")):
            return True
        case ast.BinOp(op=ast.BitOr() | ast.BitAnd() | ast.Sub() | ast.BitXor()):
            return is_set(node.left, names) or is_set(node.right, names)
    return False


ORDERED = {"list", "tuple", "enumerate", "zip", "map", "iter", "filter", "reversed"}


def iterated(node: ast.AST) -> list[ast.AST]:
    """What a node walks through in order."""
    match node:
        case ast.For() | ast.comprehension():
            return [node.iter]
        case ast.Call(func=ast.Name(id=function)) if function in ORDERED:
            return list(node.args)
        case ast.Call(func=ast.Attribute(attr="join" | "extend" | "from_iterable")):
            return list(node.args)
        case ast.Starred():
            return [node.value]
    return []


def unordered_uses(scope: ast.AST) -> Iterator[ast.AST]:
    """Places in a function where the order of a set leaks out. A set comprehension over a set stays a set."""
    inside = list(own_nodes(scope))
    names = {node.targets[0].id for node in inside if isinstance(node, ast.Assign)
             and isinstance(node.targets[0], ast.Name) and is_set(node.value, set())}
    harmless = {id(generator) for node in inside for generator in getattr(node, "generators", [])
                if isinstance(node, ast.SetComp)}
    # any, all, sum of ints, len, min, max, sorted and set(...) give the same answer in every order.
    for node in inside:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {
                "any", "all", "sorted", "set", "frozenset", "min", "max", "len"}:
            harmless |= {id(generator) for argument in node.args for generator in getattr(argument, "generators", [])}
            harmless |= {id(argument) for argument in node.args}
        if isinstance(node, ast.Set):
            harmless |= {id(element) for element in node.elts}
    for node in inside:
        if id(node) not in harmless and any(is_set(source, names) for source in iterated(node)):
            yield node


def test_no_set_iteration() -> None:
    offenders = []
    for name, tree in TREES.items():
        for scope in [tree, *(node for node in ast.walk(tree) if isinstance(node, Function))]:
            offenders += [at(name, getattr(node, "iter", node)) for node in unordered_uses(scope)]
    expect_none(offenders, "the order of a set differs from process to process; sort it:")
