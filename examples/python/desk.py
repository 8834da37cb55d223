"""Two functions that a model may call, each in a process of its own; what it returns goes to the model."""

import ast
import operator
from datetime import datetime

OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


def current_time() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M")


def calculate(expression: str) -> str:
    return str(_value(ast.parse(expression, mode="eval").body))


def _value(node: ast.AST) -> float:
    """Numbers and the operations above, and nothing else that Python could do."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.BinOp):
        return OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp):
        return OPERATIONS[type(node.op)](_value(node.operand))
    raise ValueError(f"{ast.unparse(node)} is no arithmetic")
