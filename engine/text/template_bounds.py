"""The sandbox in which chat templates run, with an end to the work that one rendering may do.

A template comes with a model file and is foreign code. Jinja's sandbox keeps it from what it must not touch,
but not from a loop without end or a string of gigabytes. Here everything a template does is paid for out of a
budget: each turn of a loop, each call, filter and test, and the size of each value before it is made or read
through. One operation costs at most what it is charged, so time and memory are bounded without looking at a
clock, and the same template ends the same way on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import update_wrapper
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext, markup_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from markupsafe import Markup

from specx.engine.text.template_budget import MAX_BITS, TURN, Budget
from specx.engine.text.template_sizes import (
    CALL_SIZES,
    EACH_FILTERS,
    FILTER_SIZES,
    METHODS,
    SHALLOW_FILTERS,
    SHALLOW_TESTS,
    SLOW_FILTERS,
    printf_size,
)

__all__ = ["BoundedEnvironment"]

MAX_SOURCE = 1 << 17
MAX_NODES = 1 << 14
"""Characters of a template, and parts it is made of: several times those of the longest ones in use."""

_PLAIN = (str, list, dict, int, bool, type(None))
_OF_DICT = frozenset(dir(dict))
_OF_LOOP = frozenset(
    {"first", "last", "index", "index0", "revindex", "revindex0", "length", "previtem", "nextitem"}
)
_FREE_TESTS = frozenset({"defined", "undefined", "none", "string", "mapping", "iterable", "sequence"})
_OPERATORS = {
    **{"eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<="},
    **{"in": "in", "notin": "not in"},
}


class _BoundedCode(CodeGenerator):
    """Jinja's compiler, with a hook wherever its own code would go past the environment.

    Where a bound is plain to see no hook is needed: the templates of models stay about as fast as in jinja2.
    """

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:  # noqa: N802 (the name jinja2 looks for)
        terms: list[nodes.Expr] = [node.right]
        first: nodes.Expr = node.left
        while isinstance(first, nodes.Add):
            terms.append(first.right)
            first = first.left
        self._visit_call("added(", [first, *reversed(terms)], frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self._visit_call("joined(context.eval_ctx.autoescape, ", node.nodes, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        # A constant is short, and two values are compared no further than the shorter one goes.
        searched = any(operand.op in ("in", "notin") for operand in node.ops)
        free = not searched and len(sides) == 2 and any(isinstance(side, nodes.Const) for side in sides)
        self.write("(")
        self._visit_weighed(node.expr, frame, free=free)
        for operand in node.ops:
            self.write(f" {_OPERATORS[operand.op]} ")
            hook = "searched(" if operand.op in ("in", "notin") else "weighed("
            self._visit_weighed(operand.expr, frame, hook, free=free)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if isinstance(node.arg, nodes.Slice):
            bounds = (node.arg.start, node.arg.stop, node.arg.step)
            self._visit_call(
                "sliced(",
                [node.node, *(nodes.Const(None) if each is None else each for each in bounds)],
                frame,
            )
            return
        self.write("environment.getitem(")
        self.visit(node.node, frame)
        self.write(", ")
        self._visit_weighed(node.arg, frame)  # it is hashed
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx != "load":
            super().visit_Tuple(node, frame)
            return
        self.write("environment.made(")
        super().visit_Tuple(node, frame)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self.write("environment.made(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self.write("environment.made({")
        for pair in node.items:
            self._visit_weighed(pair.key, frame)
            self.write(": ")
            self.visit(pair.value, frame)
            self.write(", ")
        self.write("})")

    def _visit_call(self, opening: str, arguments: Iterable[nodes.Node], frame: Frame) -> None:
        self.write(f"environment.{opening}")
        for argument in arguments:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")

    def _visit_weighed(
        self, node: nodes.Node, frame: Frame, hook: str = "weighed(", *, free: bool = False
    ) -> None:
        if free or isinstance(node, nodes.Const | nodes.Compare | nodes.Test | nodes.Not):
            self.visit(node, frame)
        else:
            self._visit_call(hook, [node], frame)

    def _make_finalize(self) -> CodeGenerator._FinalizeInfo:
        # Constants are folded: what has a size of its own refuses that.
        return self._FinalizeInfo(self._default_finalize, "environment.text(")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which everything is paid for from `budget`.

    Args:
        filters, variables: those that templates find besides Jinja's own.
        options: of `jinja2.Environment`.

    Attributes:
        budget: of the rendering that is under way; it begins with nothing.
    """

    code_generator_class = _BoundedCode
    intercepted_binops = frozenset(["*", "**", "%"])  # the others make nothing large, but for `added`

    def __init__(
        self, filters: Mapping[str, Callable[..., Any]], variables: Mapping[str, Any], **options: Any
    ) -> None:
        # What the optimizer evaluates would run before there is a budget.
        super().__init__(optimized=False, **options)
        self.budget = Budget(0)
        self.globals.pop("lipsum", None)
        self.globals.update(variables)
        self.filters = {name: _filter(name, run) for name, run in {**self.filters, **filters}.items()}
        tests: Mapping[str, Any] = self.tests
        self.tests = {name: _test(name, run) for name, run in tests.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_SOURCE:
            raise SecurityError(f"it is longer than {MAX_SOURCE} characters")
        tree = super()._parse(source, name, filename)
        if _count_turns(tree) > MAX_NODES:
            raise SecurityError(f"it has more than {MAX_NODES} parts")
        return tree

    def turn(self, work: int) -> bool:
        """A loop or a macro begins once more; true."""
        budget = self.budget
        budget.left -= work
        if budget.left < 0:
            budget.spend(0)
        return True

    def weighed(self, value: Any) -> Any:
        """`value`, which is going to be compared or hashed."""
        if type(value) is not int:
            self.budget.weigh(value)
        return value

    def searched(self, value: Any) -> Any:
        """`value`, in which something is looked for."""
        if type(value) is not dict:
            self.budget.weigh(value)
        return value

    def made(self, value: Any) -> Any:
        """`value`, which a literal has made."""
        return self.budget.made(value)

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """A part of `value`."""
        return self.budget.made(value[start:stop:step])

    def added(self, *terms: Any) -> Any:
        """Their sum, from left to right."""
        for term in terms:
            if type(term) is not str:
                return self._sum(terms)
        text = "".join(terms)
        budget = self.budget
        budget.left -= len(text)
        if budget.left < 0:
            budget.spend(0)
        return text

    def _sum(self, terms: tuple[Any, ...]) -> Any:
        budget, total = self.budget, terms[0]
        for term in terms[1:]:
            if isinstance(total, str | list | tuple) and isinstance(term, str | list | tuple):
                budget.spend(8 * (len(total) + len(term)))
            total = total + term
        return budget.made(total)

    def joined(self, autoescape: bool, *parts: Any) -> str:
        """The text of `parts`, one after the other."""
        if autoescape:
            escaped: str = self.budget.made(markup_join(map(self.text, parts)))
            return escaped
        return self.concat([part if type(part) is str else str(self.text(part)) for part in parts])

    def text(self, value: Any) -> Any:
        """`value`, which is going to be written; a character of a string within a list takes up to ten.

        A string is paid for where it goes.
        """
        if type(value) is not str:
            self.budget.check(10 * self.budget.weigh(value))
        return value

    def concat(self, pieces: Iterable[str]) -> str:
        """Their text."""
        pieces = pieces if isinstance(pieces, list) else self.budget.listed(pieces)
        self.budget.spend(sum(map(len, pieces)))
        return "".join(pieces)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`, or the element of that name; most are looked up at once."""
        kind = type(obj)
        if kind is dict and attribute not in _OF_DICT:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if kind is LoopContext and attribute in _OF_LOOP:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may use it: of built-in types only what has a bound."""
        known = METHODS.get(type(obj))
        if known is None:
            known = next((METHODS[kind] for kind in type(obj).__mro__ if kind in METHODS), None)
        return super().is_safe_attribute(obj, attr, value) if known is None else attr in known

    def call(
        __self,  # noqa: N805 (any name may be among `kwargs`)
        __context: Context,
        __obj: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Call a function, a macro or a method."""
        budget = __self.budget
        budget.spend(2 * TURN)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str | list | tuple | dict | range) or isinstance(__obj, type):
            args = tuple(budget.listed(arg) if isinstance(arg, Iterator) else arg for arg in args)
            for value in args:
                budget.weigh(value)
            size = CALL_SIZES.get(__obj.__name__)
            if isinstance(owner, str):
                budget.spend(len(owner))
                if size is not None:
                    budget.check(size(owner, args, kwargs))
            elif isinstance(owner, dict):
                budget.look(owner)
            else:  # `count` and `index` compare
                budget.weigh(owner)
        return budget.made(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic, if its result has a size that can be borne."""
        if operator == "%" and type(left) is int:
            return left % right
        self.budget.check(_binop_size(self.budget, operator, left, right))
        return self.budget.made(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, with fields that are paid for."""
        if getattr(value, "__name__", None) not in ("format", "format_map"):
            return None
        wrapped = super().wrap_str_format(value)
        if wrapped is None or isinstance(value.__self__, Markup):
            return None if wrapped is None else _refuse_format
        formatter = _BoundedFormatter(self)

        def run(*args: Any, **kwargs: Any) -> str:
            if value.__name__ == "format_map":
                args, kwargs = (), *args
            return formatter.vformat(value.__self__, args, kwargs)

        return update_wrapper(run, value)


class _BoundedFormatter(SandboxedFormatter):
    """`str.format` in the sandbox."""

    def __init__(self, environment: BoundedEnvironment) -> None:
        super().__init__(environment)
        self._environment = environment

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """`value` as `!r` or `!s` want it."""
        return super().convert_field(self._environment.text(value), conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        """One field."""
        budget = self._environment.budget
        budget.check(4 * sum(int(digits[:18]) for digits in re.findall(r"\d+", format_spec)))
        text: str = budget.made(super().format_field(self._environment.text(value), format_spec))
        return text


def _refuse_format(*_args: Any, **_kwargs: Any) -> str:
    raise SecurityError("str.format of marked-up text is not available")


def _binop_size(budget: Budget, operator: str, left: Any, right: Any) -> int:
    """An upper bound for the bytes of `left operator right`."""
    if isinstance(left, int) and isinstance(right, int):
        bits = {
            "*": left.bit_length() + right.bit_length(),
            "**": left.bit_length() * abs(right),
        }.get(operator, 0)
        if bits > MAX_BITS:
            raise SecurityError("a number is too large")
        return bits
    if operator == "*":
        for values, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(values, str | bytes | list | tuple):
                return 8 * len(values) * times
    if operator == "%" and isinstance(left, str):
        return printf_size(left, budget.weigh(right))
    return 0


def _count_turns(node: nodes.Node) -> int:
    """Let each loop and macro below `node` count its turns, by its size; returns how many nodes there are."""
    size = 1 + sum(map(_count_turns, node.iter_child_nodes()))
    if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block):
        turn = nodes.EnvironmentAttribute(f"turn({TURN + 32 * size})", lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(turn, lineno=node.lineno))
    if isinstance(node, nodes.For) and node.test is not None:
        node.test = nodes.And(nodes.EnvironmentAttribute(f"turn({TURN})"), node.test, lineno=node.lineno)
    return size


def _filter(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `run`, paid for."""
    shallow, slow, each = name in SHALLOW_FILTERS, name in SLOW_FILTERS, name in EACH_FILTERS
    size_of = FILTER_SIZES.get(name)

    leading = _leading(run)
    plain = not (shallow or slow or size_of) and leading is _nothing

    @pass_context
    def bounded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget: Budget = context.environment.budget  # type: ignore[attr-defined]
        if plain and type(value) is str and not args and not kwargs:
            budget.spend(TURN + 8 * len(value))
            return run(value)
        budget.spend(TURN)
        if type(value) not in _PLAIN and isinstance(value, Iterator):
            value = budget.listed(value)
        if shallow:
            weight = budget.look(value)
            budget.spend(15 * weight if each else 0)
        else:
            weight = budget.weigh(value) + sum(map(budget.weigh, (*args, *kwargs.values())))
        if slow:
            budget.spend(31 * weight)
        if size_of is not None:
            budget.check(size_of(value, args, kwargs, weight))
        return budget.made(run(*leading(context), value, *args, **kwargs))

    return bounded


def _test(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """The test `run`, paid for."""
    if name in _FREE_TESTS:
        return run
    leading = _leading(run)

    @pass_context
    def bounded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget: Budget = context.environment.budget  # type: ignore[attr-defined]
        budget.spend(TURN)
        if name not in SHALLOW_TESTS:
            for each in (value, *args, *kwargs.values()):
                budget.weigh(each)
        return run(*leading(context), value, *args, **kwargs)

    return bounded


def _leading(run: Callable[..., Any]) -> Callable[[Context], tuple[Any, ...]]:
    """What jinja2 passes to a filter or test before the value."""
    wanted = getattr(run, "jinja_pass_arg", None)
    if wanted is None:
        return _nothing
    source = {"context": "", "eval_context": "eval_ctx", "environment": "environment"}[wanted.name]
    return lambda context: (getattr(context, source) if source else context,)


def _nothing(_context: Context) -> tuple[Any, ...]:
    return ()
