"""Follow every use of `tensorrt` through a file's source and name those that an API list does not hold.

Types come from four places: `trt = import_tensorrt()` is the module, `trt.Builder(...)` an instance, a call has the
type its signature in the list returns, and an annotation, `tensorrt.X` or `ModuleType`, says what a name, an attribute
of self or an argument is. To hand something of the module to a function whose argument is not annotated is a problem,
too: nothing escapes.
"""

from __future__ import annotations

import ast
import builtins
from dataclasses import dataclass, field

PLAIN = {"int", "str", "bool", "bytes", "None", "float", "memoryview", "list", "tuple", "object"}
"""Returned types that are Python's own."""

MODULE = "module"


@dataclass
class Walk(ast.NodeVisitor):
    """One file against one list; `problems` are sentences with line numbers."""

    api: dict
    problems: list[str] = field(default_factory=list)
    uses: list[str] = field(default_factory=list)
    scopes: list[dict[str, str]] = field(default_factory=lambda: [{}])
    fields: dict[str, str] = field(default_factory=dict)
    """Attributes of self with their types."""
    functions: dict[str, str] = field(default_factory=dict)
    """Functions of the file that return something of the module."""
    parameters: dict[str, list[str]] = field(default_factory=dict)
    """Types of the arguments of the file's functions."""

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
        return "?"

    # --- Types of expressions: "module", "class X", "X" (an instance), "X.name" (bound), or "" for none of ours ---

    def type_of(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return next((scope[node.id] for scope in reversed(self.scopes) if node.id in scope), "")
        if isinstance(node, ast.Attribute):
            return self.attribute(node)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.BoolOp):
            return next((found for value in node.values if (found := self.type_of(value))), "")
        if isinstance(node, ast.IfExp):
            return self.type_of(node.body) or self.type_of(node.orelse)
        if isinstance(node, ast.NamedExpr):
            return self.type_of(node.value)
        return ""

    def attribute(self, node: ast.Attribute) -> str:
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return self.fields.get(node.attr, "")
        owner = self.type_of(node.value)
        name = node.attr
        if not owner or owner == "?":
            return owner
        if owner == MODULE:
            self.uses.append(name)
            if name == "__version__":
                return ""
            if name not in self.api:
                return self.report(node, f"tensorrt has no {name}")
            return f"class {name}"
        if owner.startswith("class "):
            kind = owner.removeprefix("class ")
            self.uses.append(f"{kind}.{name}")
            entry = self.api[kind]
            if "enum" in entry:
                return "" if name in entry["enum"].split() else self.report(node, f"{kind} has no member {name}")
            facts = self.members(kind).get(name)
            if facts is None:
                return self.report(node, f"{kind} has no {name}")
            return f"class {kind}.{name}" if isinstance(facts, list) else ""
        if "." in owner:
            return self.report(node, f"{owner} is a method and has no {name}")
        self.uses.append(f"{owner}.{name}")
        facts = self.members(owner).get(name)
        if facts is None:
            return self.report(node, f"{owner} has no {name}")
        if isinstance(facts, list):
            return f"{owner}.{name}"
        if isinstance(node.ctx, ast.Store) and facts != "set":
            return self.report(node, f"{owner}.{name} can't be set")
        return ""

    def call(self, node: ast.Call) -> str:
        target = node.func
        if isinstance(target, ast.Name) and target.id == "import_tensorrt":
            return MODULE  # in whatever file it is called
        kind = self.type_of(target)
        if kind == MODULE:
            return self.report(node, "the module is called")
        if not kind or kind == "?":
            self.check_escape(node)
            return self.functions.get(target.id, "") if isinstance(target, ast.Name) else ""
        unbound = 0
        if kind.startswith("class "):
            kind = kind.removeprefix("class ")
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
        return owner if name == "__init__" and not unbound and returned != "?" else returned

    def check_escape(self, node: ast.Call) -> None:
        """Report what a call that is none of the module's is given, unless an annotation follows it there."""
        name = ast.unparse(node.func)
        known = self.parameters.get(name, [])
        for index, argument in enumerate((*node.args, *(keyword.value for keyword in node.keywords))):
            kind = self.type_of_quietly(argument)
            if kind and kind != "?" and not hasattr(builtins, name) and (index >= len(known) or known[index] != kind):
                self.report(node, f"{kind} goes to {name}, whose argument is not annotated")

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
                kind = returned.strip()
                if kind in PLAIN or kind.startswith(("list[", "tuple[")) or "enum" in self.api.get(kind, {}):
                    return ""
                return (
                    kind if kind in self.api else self.report(node, f"{name} returns {kind}, which is not in the list")
                )
        return self.report(node, f"{name} takes ({' or '.join(signatures)}), not {given} arguments and {sorted(named)}")

    # --- Names ---

    def annotated(self, annotation: ast.expr | None) -> str:
        """Return the class of an annotation `tensorrt.X` or `tensorrt.X | None`, or the module."""
        if isinstance(annotation, ast.Name) and annotation.id == "ModuleType":
            return MODULE
        if isinstance(annotation, ast.BinOp):
            return self.annotated(annotation.left)
        if isinstance(annotation, ast.Attribute) and ast.unparse(annotation.value) == "tensorrt":
            return annotation.attr if annotation.attr in self.api else self.report(annotation, f"no {annotation.attr}")
        return ""

    def bind(self, target: ast.expr, kind: str) -> None:
        if isinstance(target, ast.Name):
            self.scopes[-1][target.id] = kind
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            if kind:
                self.fields[target.attr] = kind
        elif isinstance(target, ast.Attribute):
            self.type_of(target)

    def visit_Module(self, node: ast.Module) -> None:
        for part in ast.walk(node):  # fields and functions are known before any body is read
            if isinstance(part, ast.FunctionDef):
                self.parameters[part.name] = [self.annotated(argument.annotation) for argument in part.args.args]
                if kind := self.annotated(part.returns):
                    self.functions[part.name] = kind
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Attribute):
                self.bind(part.target, self.annotated(part.annotation))
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        self.scopes.append({argument.arg: self.annotated(argument.annotation) for argument in arguments})
        for part in node.body:
            self.visit(part)
        self.scopes.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            kind = self.type_of(base)
            for part in node.body if kind.startswith("class ") else []:
                if isinstance(part, ast.FunctionDef) and part.name != "__init__":
                    self.overrides(part, kind.removeprefix("class "))
        self.generic_visit(node)

    def overrides(self, node: ast.FunctionDef, kind: str) -> None:
        """Check a method that takes the place of one of the module's."""
        signatures = self.members(kind).get(node.name)
        names = [argument.arg for argument in node.args.args[1:]]
        if not isinstance(signatures, list) or names not in [s.split("->")[0].split() for s in signatures]:
            self.report(node, f"{kind} has no method {node.name}({', '.join(names)}) to override")

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.bind(target, self.type_of_quietly(node.value))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
        self.bind(node.target, self.annotated(node.annotation))

    def type_of_quietly(self, node: ast.expr) -> str:
        """Return a type without a second report of what is wrong inside."""
        problems, uses = list(self.problems), list(self.uses)
        kind = self.type_of(node)
        self.problems, self.uses = problems, uses
        return kind

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.type_of(node)

    def visit_Call(self, node: ast.Call) -> None:
        self.type_of(node)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.visit(argument)
        if not isinstance(node.func, ast.Name | ast.Attribute):
            self.visit(node.func)
        elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Call):
            for argument in (*node.func.value.args, *(k.value for k in node.func.value.keywords)):
                self.visit(argument)


def problems_in(source: str, api: dict) -> list[str]:
    """Return every use of `tensorrt` in `source` that `api` does not hold, once each."""
    walk = Walk(api)
    walk.visit(ast.parse(source))
    return list(dict.fromkeys(walk.problems))


def uses_in(source: str, api: dict) -> list[str]:
    """Return the names of the module, and of its objects, that `source` uses."""
    walk = Walk(api)
    walk.visit(ast.parse(source))
    return sorted(set(walk.uses))
