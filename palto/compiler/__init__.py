"""From a Python function to a program: trace, guard, run."""


def compile(function):
    return function
