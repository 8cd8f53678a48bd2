#!/usr/bin/env python3
"""Runs the SQL and Python blocks of a README in the current folder, as a reader would.

usage: readme.py README.md

SQL goes to DuckDB, where every statement must find rows; Python is executed. Prints what came out, and fails at the first
block that does.
"""

import re
import sys

import duckdb


def main():
    text = open(sys.argv[1], encoding="utf-8").read()
    blocks = re.findall(r"^```(sql|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    if {language for language, _ in blocks} != {"sql", "python"}:
        sys.exit(f"{sys.argv[1]}: expected SQL and Python blocks")
    for language, code in blocks:
        print(code)
        if language == "python":
            exec(compile(code, "README.md", "exec"), {})
            continue
        connection = duckdb.connect()
        for statement in duckdb.extract_statements(code):
            rows = connection.execute(statement).fetchall()
            if not rows:
                sys.exit(f"no rows: {statement.query}")
            print(*rows[:8], f"{len(rows)} rows\n", sep="\n")
    print(f"{len(blocks)} blocks of {sys.argv[1]} run")


if __name__ == "__main__":
    main()
