"""Follow every use of `tensorrt` through a file's source and name those that an API list does not hold.

What is followed: the module (from `import_tensorrt()`, an import, `import_module`, `sys.modules`), its classes, their
objects, methods and what calls return by the list, through names, attributes, `with`, `for`, `:=`, tuples and other
collections, comprehensions, arguments, defaults and returns. A name that held something of the module once is taken to
hold it for good, and an attribute by its name alone, whoever's it is. An annotation is taken at its word.

What can't be followed is a problem, too: something of the module that is given to a function, put into a place or
returned without an annotation that says so, looked up by name or by index, mixed with other things, or a value whose
type the list does not tell and that is more than passed on to Python's own. Not looked into are numbers, strings and
the members of enums. Each file is read by itself: what one takes from another is followed for `import_tensorrt` alone,
so nothing else that a file lets others see may return something of the module.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

PLAIN = {"int", "str", "bool", "bytes", "None", "float", "memoryview", "list", "tuple", "object"}
"""Returned types that are Python's own."""

ENDS = {
    "bool",
    "bytes",
    "float",
    "hash",
    "id",
    "int",
    "isinstance",
    "len",
    "memoryview",
    "print",
    "range",
    "repr",
    "str",
}
"""Python's own functions that give nothing of the module back."""

_TREATED_AS = {
    "AsyncFor": "For",
    "AsyncFunctionDef": "FunctionDef",
    "AsyncWith": "With",
    "Await": "Yield",
    "Nonlocal": "Global",
    "YieldFrom": "Yield",
    **dict.fromkeys(("Call", "Subscript", "Tuple", "List", "Set", "Dict", "IfExp", "BoolOp"), "Attribute"),
    **dict.fromkeys(("DictComp", "GeneratorExp", "SetComp"), "ListComp"),
}
"""Kinds of nodes that are visited as another."""

_COMPREHENSION = "for"
"""Marks a comprehension's scope; no name is called so."""

MODULE = "module"
UNKNOWN = "?"
"""The type of what was reported already."""


@dataclass
class Function:
    """A function of the file: what its annotations say."""

    arguments: list[tuple[str, str]]
    """Name and type of each, `self` left out."""
    returns: str


@dataclass
class Walk(ast.NodeVisitor):
    """One file against one list; `problems` are sentences with line numbers."""

    api: dict
    problems: list[str] = field(default_factory=list)
    uses: list[str] = field(default_factory=list)
    scopes: list[dict[str, str]] = field(default_factory=lambda: [{}])
    fields: dict[str, str] = field(default_factory=dict)
    """Attributes of the file's own objects with their types."""
    functions: dict[str, list[Function]] = field(default_factory=dict)
    """The file's functions and methods, by name."""
    inside: list[Function] = field(default_factory=list)
    """The functions around the present line."""
    classes: list[tuple[str, set[str]]] = field(default_factory=list)
    """The classes around it: which of the module's they derive from, and the names they define."""

    # --- What the list says ---

    def members(self, kind: str) -> dict[str, object]:
        """Return the members of a class and its bases."""
        entry = self.api.get(kind, {})
        found: dict[str, object] = {}
        for base in entry.get("bases", []):
            found |= self.members(base)
        return found | entry.get("members", {})

    def report(self, node: ast.AST, sentence: str) -> str:
        self.problems.append(f"line {node.lineno}: {sentence}")
        return UNKNOWN

    # --- Types of expressions: "module", "class X", "X" (an object), "X.name" (a method), "class X.name", "items X" (a
    # --- collection of X), "value X.name" (what the list does not tell), "" for none of ours, "?" for reported already

    def type_of(self, node: ast.expr | None) -> str:
        """Return the type of an expression; reports what is wrong on the way there."""
        match node:
            case ast.Name():
                return self.name(node)
            case ast.Attribute():
                return self.attribute(node)
            case ast.Call():
                return self.call(node)
            case ast.Subscript():
                return self.subscript(node)
            case ast.BoolOp():
                return self.joined(node, [self.type_of(value) for value in node.values])
            case ast.IfExp():
                return self.joined(node, [self.type_of(node.body), self.type_of(node.orelse)])
            case ast.NamedExpr():
                return self.type_of(node.value)
            case ast.Tuple() | ast.List() | ast.Set():
                return self.items(node, [self.type_of(part) for part in node.elts])
            case ast.Dict():
                return self.items(node, [self.type_of(part) for part in (*node.keys, *node.values) if part])
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                return self.comprehension(node)
        return ""

    def quietly(self, node: ast.expr | None) -> str:
        """Return a type without a second report of what is wrong inside."""
        problems, uses = list(self.problems), list(self.uses)
        kind = self.type_of(node)
        self.problems, self.uses = problems, uses
        return kind

    def joined(self, node: ast.AST, kinds: list[str]) -> str:
        """Return the one type among `kinds`; several can't be followed."""
        ours = sorted({kind for kind in kinds if kind and kind != UNKNOWN})
        if len(ours) > 1:
            return self.report(node, f"{' or '.join(ours)} can't be followed")
        return ours[0] if ours else UNKNOWN if UNKNOWN in kinds else ""

    def items(self, node: ast.AST, kinds: list[str]) -> str:
        kind = self.joined(node, kinds)
        return f"items {kind}" if kind and kind != UNKNOWN else kind

    def element(self, node: ast.AST, kind: str) -> str:
        """Return what an iteration over, or an index of, something of type `kind` gives."""
        if kind.startswith("items "):
            return kind.removeprefix("items ")
        if not kind or kind == UNKNOWN or kind.startswith("Dims"):  # Dims are numbers
            return "" if kind.startswith("Dims") else kind
        return self.report(node, f"what {kind} holds can't be followed")

    def name(self, node: ast.Name) -> str:
        if self.classes and node.id == "self" and self.classes[-1][0]:
            return self.classes[-1][0]
        return next((scope[node.id] for scope in reversed(self.scopes) if node.id in scope), "")

    def attribute(self, node: ast.Attribute) -> str:
        name = node.attr
        own = isinstance(node.value, ast.Name) and node.value.id == "self"
        if own and (name in self.fields or (self.classes and name in self.classes[-1][1])):
            return self.fields.get(name, "")
        owner = self.type_of(node.value)
        if owner == UNKNOWN:
            return owner
        if not owner:
            return self.fields.get(name, "")
        if owner == MODULE:
            self.uses.append(name)
            return "" if name == "__version__" else self.of_module(node, name)
        if owner.startswith(("items ", "value ")) or "." in owner:
            return self.report(node, f"{name} of {owner} can't be followed")
        kind = owner.removeprefix("class ")
        self.uses.append(f"{kind}.{name}")
        entry = self.api[kind]
        if "enum" in entry:
            return "" if name in entry["enum"].split() else self.no_member(node, kind, name)
        facts = self.members(kind).get(name)
        if facts is None:
            return self.report(node, f"{kind} has no {name}")
        if isinstance(facts, list):
            return f"{owner}.{name}"
        if isinstance(facts, dict):
            return self.nested(node, kind, name, facts["constant"])
        if owner.startswith("class "):
            return self.report(node, f"{kind}.{name} is a property of objects")
        if isinstance(node.ctx, ast.Store):
            return "" if facts == "set" else self.report(node, f"{kind}.{name} can't be set")
        return f"value {kind}.{name}"

    def no_member(self, node: ast.AST, kind: str, name: str) -> str:
        return self.report(node, f"{kind.replace(':', '.')} has no member {name}")

    def of_module(self, node: ast.AST, name: str) -> str:
        if name not in self.api:
            return self.report(node, f"tensorrt has no {name}")
        return "" if "constant" in self.api[name] else f"class {name}"

    def nested(self, node: ast.Attribute, kind: str, name: str, constant: str) -> str:
        """Return the type of a class's constant; an enum inside a class has those constants whose type it is."""
        if constant != "class":
            return ""
        inside = {n for n, facts in self.members(kind).items() if isinstance(facts, dict) and facts["constant"] == name}
        full = f"{kind}.{name}"
        self.api = {**self.api, f"{kind}:{name}": {"enum": " ".join(sorted(inside))}}
        return f"class {kind}:{name}" if inside else self.report(node, f"{full} can't be followed")

    def subscript(self, node: ast.Subscript) -> str:
        named = isinstance(node.slice, ast.Constant) and node.slice.value == "tensorrt"
        if named and ast.unparse(node.value).split(".")[-1] == "modules":
            return MODULE
        kind = self.type_of(node.value)
        return kind if isinstance(node.slice, ast.Slice) and kind.startswith("items ") else self.element(node, kind)

    def comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> str:
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        with_scope = self.bound(node.generators)
        kind = self.items(node, [self.type_of(part) for part in parts])
        self.scopes = with_scope
        return kind

    def bound(self, generators: list[ast.comprehension]) -> list[dict[str, str]]:
        """Open a scope with a comprehension's names, and return the scopes before."""
        before = self.scopes
        self.scopes = [*before, {_COMPREHENSION: ""}]
        for generator in generators:
            self.bind(generator.target, self.element(generator.iter, self.type_of(generator.iter)))
        return before

    # --- Calls ---

    def call(self, node: ast.Call) -> str:
        target = node.func
        name = target.id if isinstance(target, ast.Name) else target.attr if isinstance(target, ast.Attribute) else ""
        if name == "import_tensorrt":
            return MODULE  # in whatever file it is called
        if name in ("import_module", "__import__"):
            return MODULE if any(getattr(part, "value", "") == "tensorrt" for part in node.args) else ""
        if name == "super" and self.classes:
            return self.classes[-1][0]
        kind = self.type_of(target)
        if kind == MODULE or kind.startswith(("items ", "value ")):
            return self.report(node, f"a call of {kind} can't be followed")
        if not kind or kind == UNKNOWN:
            self.check_escape(node, name)
            found = [function.returns for function in self.functions.get(name, [])]
            return self.joined(node, found) if kind != UNKNOWN else kind
        unbound = 0
        if kind.startswith("class "):
            kind = kind.removeprefix("class ")
            if ":" in kind or "enum" in self.api.get(kind, {}):
                return ""
            if "." in kind:  # X.method(self, ...): the object itself comes first
                owner, name = kind.split(".")
                signatures, unbound = self.members(owner)[name], 1
            elif "function" in self.api[kind]:
                owner, name, signatures = "", kind, self.api[kind]["function"]
            else:
                owner, name, signatures = kind, "__init__", self.members(kind).get("__init__", [])
        elif "." in kind:
            owner, name = kind.split(".")
            signatures = self.members(owner)[name]
        else:
            return self.report(node, f"a {kind} is called")
        returned = self.check(node, f"{owner}.{name}".strip("."), signatures, unbound)
        return owner if name == "__init__" and not unbound and returned != UNKNOWN else returned

    def check_escape(self, node: ast.Call, name: str) -> None:
        """Report what a call that is none of the module's is given, unless an annotation follows it there."""
        given = [*enumerate(node.args), *((keyword.arg, keyword.value) for keyword in node.keywords)]
        for place, argument in given:
            kind = self.quietly(argument)
            if not kind or kind == UNKNOWN or (isinstance(node.func, ast.Name) and name in ENDS):
                continue
            known = [dict([*enumerate(k for _, k in f.arguments), *f.arguments]) for f in self.functions.get(name, [])]
            if not known or any(arguments.get(place) != kind for arguments in known):
                self.report(node, f"{kind} goes to {ast.unparse(node.func)}, whose argument is not annotated")

    def check(self, node: ast.Call, name: str, signatures: list[str], unbound: int) -> str:
        """Return what a call returns, if its arguments fit any of the signatures."""
        if not signatures:
            return "" if name.endswith("__init__") and unbound else self.report(node, f"{name} can't be called")
        if any(isinstance(argument, ast.Starred) for argument in node.args) or any(
            k.arg is None for k in node.keywords
        ):
            return self.report(node, f"{name} is called with * or **, which can't be checked")
        given, named = len(node.args) - unbound, {keyword.arg for keyword in node.keywords}
        for signature in signatures:
            arguments, returned = signature.split("->")
            names = arguments.split()
            rest = names[given:]
            needed = {argument for argument in rest if not argument.endswith("?")}
            if 0 <= given <= len(names) and needed <= named <= {argument.rstrip("?") for argument in rest}:
                return self.returned(node, name, returned.strip())
        return self.report(node, f"{name} takes ({' or '.join(signatures)}), not {given} arguments and {sorted(named)}")

    def returned(self, node: ast.Call, name: str, kind: str) -> str:
        inner = kind.removeprefix("list[").removesuffix("]")
        if "members" in self.api.get(inner, {}):
            return f"items {inner}" if kind.startswith("list[") else kind
        if kind in PLAIN or kind.startswith(("list[", "tuple[")) or "enum" in self.api.get(kind, {}):
            return ""
        return self.report(node, f"{name} returns {kind}, which is not in the list")

    # --- Names ---

    def annotated(self, node: ast.expr | None) -> str:
        """Return what an annotation says: a class of the module, the module, or "" for none of ours."""
        if node is None:
            return ""
        if isinstance(node, ast.Constant):
            return self.annotated(_parsed(node)) if isinstance(node.value, str) else ""
        if isinstance(node, ast.Name) and node.id == "ModuleType":
            return MODULE
        if isinstance(node, ast.BinOp):
            return self.joined(node, [self.annotated(node.left), self.annotated(node.right)])
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).split(".")[-1] in ("Optional", "Union"):
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return self.joined(node, [self.annotated(part) for part in parts])
        if isinstance(node, ast.Name | ast.Attribute):
            before = self.scopes
            known = any("tensorrt" in scope for scope in before)
            self.scopes = before if known else [*before, {"tensorrt": MODULE}]
            kind = self.type_of(node)
            self.scopes = before
            kind = kind.removeprefix("class ")
            return "" if ":" in kind or "enum" in self.api.get(kind, {}) else kind
        inside = [self.annotated(part) for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
        if any(inside):
            return self.report(node, f"the annotation {ast.unparse(node)} can't be followed")
        return ""

    def put(self, names: dict[str, str], node: ast.AST, name: str, kind: str) -> None:
        """Note what a name holds; it is never taken back, and to hold two things can't be followed."""
        there = names.get(name, "")
        if kind and there and UNKNOWN not in (kind, there) and kind != there:
            self.report(node, f"{name} is {there} and {kind}, which can't be followed")
        names[name] = there if not kind or (there and kind == UNKNOWN) else kind

    def bind(self, target: ast.expr, kind: str, value: ast.expr | None = None) -> None:
        """Let a target hold `value`, which is of type `kind`."""
        if isinstance(target, ast.Name):
            shared = self.scopes[0] if "global " + target.id in self.scopes[-1] else self.scopes[-1]
            self.put(shared, target, target.id, kind)
            if self.classes and not self.inside and kind:
                self.put(self.fields, target, target.id, kind)
        elif isinstance(target, ast.Tuple | ast.List):
            same = isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts)
            if same and not any(isinstance(part, ast.Starred) for part in (*target.elts, *value.elts)):
                for part, given in zip(target.elts, value.elts, strict=True):
                    self.bind(part, self.quietly(given), given)
            else:
                inner = self.element(target, kind)
                for part in target.elts:
                    self.bind(part, inner)
        elif isinstance(target, ast.Starred):
            self.bind(target.value, f"items {kind}" if kind and kind != UNKNOWN else kind)
        elif isinstance(target, ast.Attribute):
            if isinstance(target.value, ast.Name) and target.value.id == "self":
                if kind:
                    self.put(self.fields, target, target.attr, kind)
                return
            owner = self.quietly(target.value)
            self.type_of(target)
            if kind and kind != UNKNOWN and not owner:
                self.report(target, f"{kind} is put into {ast.unparse(target)}, which can't be followed")
        elif kind and kind != UNKNOWN:
            self.report(target, f"{kind} is put into {ast.unparse(target)}, which can't be followed")

    # --- Statements ---

    def visit(self, node: ast.AST) -> None:
        name = type(node).__name__
        getattr(self, f"visit_{_TREATED_AS.get(name, name)}", self.generic_visit)(node)

    def visit_Module(self, node: ast.Module) -> None:
        for part in node.body:  # imports come first: annotations may need them
            for inner in [part, *getattr(part, "body", [])] if not isinstance(part, ast.FunctionDef) else []:
                if isinstance(inner, ast.Import | ast.ImportFrom):
                    self.visit(inner)
        for part in ast.walk(node):  # functions and annotated fields are known before any body is read
            if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                self.declare(part)
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Attribute):
                self.bind(part.target, self.annotated(part.annotation))
        self.twice(node.body)

    def twice(self, body: list[ast.stmt]) -> None:
        """Visit statements, with all that they bind known from their first line on."""
        problems, uses = list(self.problems), list(self.uses)
        for part in body:
            self.visit(part)
        self.problems, self.uses = problems, uses
        for part in body:
            self.visit(part)

    def declare(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        arguments = [
            (a.arg, self.annotated(a.annotation)) for a in _arguments(node.args) if a.arg not in ("self", "cls")
        ]
        returns = self.annotated(node.returns)
        self.functions.setdefault(node.name, []).append(Function(arguments, returns))
        if any("property" in ast.unparse(decorator) for decorator in node.decorator_list) and returns:
            self.put(self.fields, node, node.name, returns)
        if returns and not node.name.startswith("_") and node.name != "import_tensorrt":
            self.report(node, f"{node.name} lets other files have {returns}, which can't be followed")

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for part in (*node.decorator_list, *node.args.defaults, *(d for d in node.args.kw_defaults if d)):
            self.visit(part)
        self.check_defaults(node.args)
        scope = {argument.arg: self.annotated(argument.annotation) for argument in _arguments(node.args)}
        self.scopes = [*self.scopes, scope]
        self.inside.append(Function([], self.annotated(node.returns)))
        self.twice(node.body)
        self.inside.pop()
        self.scopes = self.scopes[:-1]

    def check_defaults(self, arguments: ast.arguments) -> None:
        placed = [*arguments.posonlyargs, *arguments.args]
        pairs = [
            *zip(reversed(placed), reversed(arguments.defaults), strict=False),  # the last ones have any
            *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
        ]
        for argument, default in pairs:
            kind = self.quietly(default)
            if kind and kind not in (UNKNOWN, self.annotated(argument.annotation)):
                self.report(default, f"{kind} goes to {argument.arg}, which is not annotated")

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.check_defaults(node.args)
        self.scopes = [*self.scopes, {argument.arg: "" for argument in _arguments(node.args)}]
        self.generic_visit(node)
        self.give(node, node.body, "")
        self.scopes = self.scopes[:-1]

    def give(self, node: ast.AST, value: ast.expr | None, declared: str) -> None:
        """Report something of the module that leaves a function, unless its annotation says so."""
        kind = self.quietly(value)
        if kind and kind not in (UNKNOWN, declared):
            self.report(node, f"{kind} is returned, which no annotation says")

    def visit_Return(self, node: ast.Return) -> None:
        self.generic_visit(node)
        self.give(node, node.value, self.inside[-1].returns if self.inside else "")

    def visit_Yield(self, node: ast.Yield | ast.YieldFrom | ast.Await) -> None:
        self.generic_visit(node)
        self.give(node, node.value, "")

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for part in (*node.bases, *node.keywords, *node.decorator_list):
            self.visit(part)
        bases = [self.quietly(base) for base in node.bases]
        kind = self.joined(node, [base.removeprefix("class ") for base in bases])
        kind = kind if kind in self.api else ""
        own = {part.name for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)}
        own |= {
            part.attr
            for part in ast.walk(node)
            if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store) and ast.unparse(part.value) == "self"
        }
        for part in node.body if kind else []:
            if isinstance(part, ast.FunctionDef) and part.name != "__init__":
                self.overrides(part, kind)
        self.classes.append((kind, own))
        inside, self.inside = self.inside, []
        self.scopes = [*self.scopes, {}]
        self.twice(node.body)
        self.scopes = self.scopes[:-1]
        self.inside = inside
        self.classes.pop()
        if kind:
            self.put(self.scopes[-1], node, node.name, f"class {kind}")

    def overrides(self, node: ast.FunctionDef, kind: str) -> None:
        """Check a method that takes the place of one of the module's."""
        signatures = self.members(kind).get(node.name)
        names = [argument.arg for argument in node.args.args[1:]]
        if not isinstance(signatures, list) or names not in [s.split("->")[0].split() for s in signatures]:
            self.report(node, f"{kind} has no method {node.name}({', '.join(names)}) to override")

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.split(".")[0] == "tensorrt":
                if alias.name != "tensorrt":
                    self.report(node, f"{alias.name} is not in the list")
                self.put(self.scopes[-1], node, alias.asname or "tensorrt", MODULE)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level or (node.module or "").split(".")[0] != "tensorrt":
            return
        for alias in node.names:
            self.uses.append(alias.name)
            if alias.name == "*" or node.module != "tensorrt":
                self.report(node, f"the import of {alias.name} from {node.module} can't be followed")
            elif alias.name != "__version__":
                kind = self.of_module(node, alias.name)
                self.put(self.scopes[-1], node, alias.asname or alias.name, kind)

    def visit_Global(self, node: ast.Global | ast.Nonlocal) -> None:
        for name in node.names:
            if isinstance(node, ast.Global):
                self.scopes[-1]["global " + name] = ""
            elif any(scope.get(name) for scope in self.scopes):
                self.report(node, f"{name} is nonlocal, which can't be followed")

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.bind(target, self.quietly(node.value), node.value)
            self.visit(target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        declared = self.annotated(node.annotation)
        if node.value is not None:
            self.visit(node.value)
            found = self.quietly(node.value)
            if found and found not in (UNKNOWN, declared):
                self.report(node, f"{found} is annotated {ast.unparse(node.annotation)}, which can't be followed")
        self.bind(node.target, declared)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.generic_visit(node)
        self.mixed(node, [node.target, node.value])

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        kind = self.quietly(node.value)
        self.bind(node.target, kind)
        for scope in reversed(self.scopes):  # a comprehension's := binds in what is around it
            self.put(scope, node, node.target.id, kind)
            if _COMPREHENSION not in scope:
                break

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self.bind(node.target, self.element(node.iter, self.quietly(node.iter)))
        for part in (*node.body, *node.orelse):
            self.visit(part)

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            self.visit(item.context_expr)
            if item.optional_vars is not None:  # an object of the module gives itself
                self.bind(item.optional_vars, self.quietly(item.context_expr), item.context_expr)
        for part in node.body:
            self.visit(part)

    def visit_Match(self, node: ast.Match) -> None:
        self.mixed(node, [node.subject])
        self.generic_visit(node)

    # --- Expressions: each is looked at by itself, so what is inside of one that nothing is bound to is seen, too ---

    def mixed(self, node: ast.AST, parts: list[ast.expr]) -> None:
        """Report what becomes part of something else."""
        for kind in (self.quietly(part) for part in parts):
            if kind and kind != UNKNOWN and not kind.startswith("value "):
                self.report(node, f"what becomes of {kind} here can't be followed")

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self.generic_visit(node)
        self.mixed(node, [node.left, node.right])

    def visit_Starred(self, node: ast.Starred) -> None:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            self.mixed(node, [node.value])

    def visit_Attribute(self, node: ast.Attribute | ast.Call | ast.Subscript) -> None:
        self.type_of(node)
        self.generic_visit(node)

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        before = self.bound(node.generators)
        self.generic_visit(node)
        self.scopes = before


def _arguments(arguments: ast.arguments) -> list[ast.arg]:
    extra = [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *extra]


def _parsed(node: ast.Constant) -> ast.expr | None:
    """Return the annotation in a string, where the string stands."""
    try:
        found = ast.parse(node.value, mode="eval").body
    except SyntaxError:
        return None
    for part in ast.walk(found):
        ast.copy_location(part, node)
    return found


def walked(source: str, api: dict) -> Walk:
    """Return the walk over `source`."""
    walk = Walk(api)
    walk.visit(ast.parse(source))
    return walk


def problems_in(source: str, api: dict) -> list[str]:
    """Return every use of `tensorrt` in `source` that `api` does not hold, once each."""
    return list(dict.fromkeys(walked(source, api).problems))


def uses_in(source: str, api: dict) -> list[str]:
    """Return the names of the module, and of its objects, that `source` uses."""
    return sorted(set(walked(source, api).uses))
