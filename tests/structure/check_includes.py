#!/usr/bin/env python3
"""Checks the includes of libvgen and apps against the table of rooms in docs/architecture.md.

    check_includes.py PROJECT      exit code 1 and one line for each include that breaks a rule
    check_includes.py --self-test  the same on made-up trees, each with one fault

Rules, all read from the document, so that it and the code cannot drift apart:
  - every folder of libvgen/vgen/ has a row in the table, and every row has a folder
  - a room includes itself, the rooms of its row, and what those may include
  - the table has no cycle, and no header includes itself on a detour
  - <room>/detail/ is for its room alone: neither other rooms nor apps include it
  - a room whose row says "no LibTorch" includes none of LibTorch's headers
  - an included vgen header exists
"""

import re
import sys
import tempfile
from pathlib import Path

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"]', re.MULTILINE)
LIBTORCH = re.compile(r"(torch|ATen|c10|caffe2)/")
SOURCES = {".h", ".cpp", ".cu", ".cuh"}


def parse_table(text):
    """{room: (rooms of its row, may see LibTorch)} of the table with the column "may include"."""
    rooms = {}
    in_table = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[0] == "room" and cells[-1] == "may include":
            in_table = True
        elif in_table and not line.startswith("|"):
            break
        elif in_table and not set(cells[0]) <= {"-", ":"}:
            above = list(rooms)
            row = cells[-1]
            if row == "all above":
                allowed = above
            else:
                allowed = [] if row == "-" else [name.strip() for name in row.split(",")]
            # "gpt, var" is a row of two rooms.
            for name in cells[0].split(","):
                rooms[name.strip()] = (allowed, "no LibTorch" not in cells[1])
    return rooms


def closure(rooms, room, faults):
    """What `room` may include, itself too. Reports a cycle from every room that is in it."""
    reached = set()
    todo = list(rooms[room][0])
    while todo:
        name = todo.pop()
        if name == room:
            faults.append(f"docs/architecture.md: the room '{room}' may include itself: a cycle")
        if name in reached or name not in rooms:
            continue
        reached.add(name)
        todo += rooms[name][0]
    return reached | {room}


def find_cycle(graph):
    """A list of files that include each other in a ring, or none."""
    state = {}
    for start in graph:
        if start in state:
            continue
        path, stack = [], [(start, iter(graph[start]))]
        path.append(start)
        state[start] = "open"
        while stack:
            for child in stack[-1][1]:
                if state.get(child) == "open":
                    return path[path.index(child):] + [child]
                if child not in state and child in graph:
                    state[child] = "open"
                    path.append(child)
                    stack.append((child, iter(graph[child])))
                    break
            else:
                state[path.pop()] = "done"
                stack.pop()
    return None


def read_includes(path):
    """(line number, name) of each include."""
    text = path.read_text(encoding="utf-8", errors="replace")
    for match in INCLUDE.finditer(text):
        yield text.count("\n", 0, match.start(1)) + 1, match[1]


def check_include(name, room, allowed, rooms, library):
    """What is wrong with including `name` from `room` ("" = apps), or none."""
    parts = name.split("/")
    if LIBTORCH.match(name) and room and not rooms[room][1]:
        return f"includes <{name}>, but the room '{room}' has no LibTorch"
    if parts[0] != "vgen":
        return None
    if not (library / name).is_file():
        return f'includes "{name}", which does not exist'
    if parts[1] not in allowed:
        return f"includes \"{name}\", but '{room}' may not include '{parts[1]}'"
    if "detail" in parts[2:-1] and parts[1] != room:
        return f"includes \"{name}\", which is for the room '{parts[1]}' alone"
    return None


def check(project):
    """All faults of a project, one line each, and the number of includes that were looked at."""
    library = project / "libvgen"
    faults, graph, count = [], {}, 0
    rooms = parse_table((project / "docs/architecture.md").read_text(encoding="utf-8"))
    if not rooms:
        return ['docs/architecture.md: no table with the columns "room" and "may include"'], 0
    folders = {path.name for path in (library / "vgen").iterdir() if path.is_dir()}
    faults += [f"libvgen/vgen/{name}: not in the table of docs/architecture.md"
               for name in sorted(folders - set(rooms))]
    faults += [f"docs/architecture.md: no folder libvgen/vgen/{name}"
               for name in sorted(set(rooms) - folders)]
    for room, (allowed, _) in rooms.items():
        faults += [f"docs/architecture.md: '{room}' may include '{name}', which has no row"
                   for name in allowed if name not in rooms]
    reach = {room: closure(rooms, room, faults) for room in rooms}
    roots = [(library / "vgen" / room, room) for room in sorted(folders & set(rooms))]
    for root, room in roots + [(project / "apps", "")]:
        for path in sorted(root.rglob("*")):
            if path.suffix not in SOURCES:
                continue
            shown = path.relative_to(project)
            edges = graph.setdefault(str(path.relative_to(root if not room else library)), [])
            for line, name in read_includes(path):
                count += 1
                edges.append(name)
                fault = check_include(name, room, reach.get(room, set(rooms)), rooms, library)
                if fault:
                    faults.append(f"{shown}:{line}: {fault}")
    cycle = find_cycle(graph)
    if cycle:
        faults.append("headers include each other: " + " -> ".join(cycle))
    return faults, count


TABLE = """# Architecture

| room | what lives there | may include |
| --- | --- | --- |
| core | errors; no LibTorch | - |
| tensor | devices | core |
| model | the model | tensor |
| train | the loop | all above |
| serve | answers | core |
"""

TREE = {
    "docs/architecture.md": TABLE,
    "libvgen/vgen/core/error.h": "#include <string>\n",
    "libvgen/vgen/tensor/device.h": '#include "vgen/core/error.h"\n#include <torch/torch.h>\n',
    "libvgen/vgen/tensor/detail/cuda.h": "",
    "libvgen/vgen/tensor/device.cpp": '#include "vgen/tensor/detail/cuda.h"\n',
    "libvgen/vgen/model/model.cpp": '#include "vgen/core/error.h"\n',
    "libvgen/vgen/train/loop.cpp": '#include "vgen/model/model.h"\n#include "vgen/core/error.h"\n',
    "libvgen/vgen/model/model.h": '#include "vgen/tensor/device.h"\n',
    "libvgen/vgen/serve/serve.h": "",
    "apps/main.cpp": '#include "vgen/serve/serve.h"\n',
}

# (what is changed, part of the complaint; "" = none)
CASES = [
    ({}, ""),
    ({"libvgen/vgen/serve/a.cpp": '#include "vgen/tensor/device.h"\n'},
     "libvgen/vgen/serve/a.cpp:1: includes \"vgen/tensor/device.h\", but 'serve' may not"),
    ({"libvgen/vgen/core/a.cpp": '\n# include "vgen/tensor/device.h"\n'}, "core/a.cpp:2: includes"),
    ({"libvgen/vgen/core/a.h": "#include <ATen/ATen.h>\n"}, "the room 'core' has no LibTorch"),
    ({"libvgen/vgen/model/a.cpp": '#include "vgen/tensor/detail/cuda.h"\n'},
     "for the room 'tensor' alone"),
    ({"apps/a.cpp": '#include "vgen/tensor/detail/cuda.h"\n'}, "for the room 'tensor' alone"),
    ({"libvgen/vgen/model/a.cpp": '#include "vgen/core/gone.h"\n'}, "does not exist"),
    ({"libvgen/vgen/new/a.h": ""}, "libvgen/vgen/new: not in the table"),
    ({"docs/architecture.md": TABLE + "| var | VAR | core |\n"}, "no folder libvgen/vgen/var"),
    ({"docs/architecture.md": TABLE.replace("| errors; no LibTorch | - |", "| errors | model |")},
     "the room 'core' may include itself: a cycle"),
    ({"docs/architecture.md": TABLE.replace("| devices | core |", "| devices | cor |")},
     "'tensor' may include 'cor', which has no row"),
    ({"docs/architecture.md": "# Architecture\n"}, "no table"),
    ({"libvgen/vgen/core/a.h": '#include "vgen/core/b.h"\n',
      "libvgen/vgen/core/b.h": '#include "vgen/core/a.h"\n'},
     "headers include each other: vgen/core/a.h -> vgen/core/b.h -> vgen/core/a.h"),
]


def self_test():
    failed = 0
    for changes, expected in CASES:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in {**TREE, **changes}.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            faults, _ = check(Path(folder))
        is_right = not faults if not expected else any(expected in fault for fault in faults)
        if not is_right:
            failed += 1
            print(f"self-test: expected {expected or 'no complaint'!r}, got {faults}")
    print(f"self-test: {len(CASES) - failed} of {len(CASES)} cases as expected")
    return 1 if failed else 0


def main(arguments):
    if arguments == ["--self-test"]:
        return self_test()
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    faults, count = check(Path(arguments[0]))
    for fault in faults:
        print(fault)
    print(f"{count} includes checked, {len(faults)} faults")
    return 1 if faults or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
