"""Tables: how columns become numbers, and how what is wrong in a file is named."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palto import data
from palto.data.sources import tables


@pytest.fixture
def write(tmp_path):
    def write(text, name="t.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return path

    return write


PEOPLE = """age,city,income,bought
20,Rome,1.5,yes
40,Oslo,,no
60,Rome,4.5,no
,Bonn,3,yes
"""


def test_columns_become_features(write):
    table, rest = data.csv_table(write(PEOPLE), target="bought")
    assert rest is None
    assert table.columns == (
        "age", "age is missing", "city=Bonn", "city=Oslo", "city=Rome",
        "income", "income is missing",
    )  # fmt: skip
    s = np.sqrt(1.5)
    np.testing.assert_allclose(
        table[:][0],
        [
            [-s, 0, 0, 0, 1, -s, 0],
            [0, 0, 0, 1, 0, 0, 1],
            [s, 0, 0, 0, 1, s, 0],
            [0, 1, 1, 0, 0, 0, 0],
        ],
        atol=1e-6,
    )
    assert (table.classes, table[:][1].tolist()) == (("no", "yes"), [1, 0, 0, 1])
    assert (table[0][0].dtype, table[0][1].dtype) == (np.float32, np.int64)
    features, labels = next(iter(data.DataLoader(table, 4, num_workers=2)))
    assert (features.shape, labels.shape, table.name) == ((4, 7), (4,), "t.csv")


def test_another_table_is_encoded_in_the_same_way(write, capsys):
    train, _ = data.csv_table(write(PEOPLE), target="bought")
    saved = json.loads(json.dumps(train.encoder.as_dict()))
    assert data.TableEncoder.from_dict(saved) == train.encoder
    path = write("bought;city;extra;age;income\nno;Paris;1;60;\n", "u.csv")
    for encoder in (train.encoder, saved):
        test, _ = data.csv_table(path, encoder=encoder)
        np.testing.assert_allclose(test[:][0], [[np.sqrt(1.5), 0, 0, 0, 0, 0, 1]], rtol=1e-6)
        assert test[:][1].tolist() == [0] and test.classes == ("no", "yes")
        assert test.notes == (
            "not learned from, so left out: 'extra'",
            "line 2, column 'city': 'Paris' was not learned, and counts as unknown",
        )
        assert test.lines.tolist() == [2]
    capsys.readouterr()
    unlabelled = write("age,city,income\n40,Rome,3\n", "v.csv")
    rows, _ = data.csv_table(unlabelled, encoder=saved, with_target=False)
    assert len(rows[0]) == 1 and rows[0][0].tolist() == [0, 0, 0, 0, 1, 0, 0]
    with pytest.raises(ValueError, match=r"v\.csv has no column 'bought', but 'age', 'city'"):
        data.csv_table(unlabelled, encoder=saved)
    with pytest.raises(
        ValueError, match=r"line 2, column 'bought': 'perhaps' is none of the .*yes"
    ):
        data.csv_table(
            write(PEOPLE.splitlines()[0] + "\n1,Rome,1,perhaps\n", "w.csv"), encoder=saved
        )
    with pytest.raises(ValueError, match="an encoder knows these: leave out target"):
        data.csv_table(path, encoder=saved, target="income")
    with pytest.raises(ValueError, match=r"this is no encoder of a table.*'scale'"):
        del saved["scale"]
        data.csv_table(path, encoder=saved)
    with pytest.raises(ValueError, match="with the encoder of others only"):
        data.csv_table(unlabelled, target="age", with_target=False)


def test_a_row_is_encoded_as_a_line_of_a_file(write):
    train, _ = data.csv_table(write(PEOPLE), target="bought")
    encoder = train.encoder
    for k, line in enumerate(PEOPLE.splitlines()[1:]):
        age, city, income, bought = line.split(",")
        for row in (
            {"age": age, "city": city, "income": income},  # texts, as a form gives them
            {"income": float(income) if income else None, "city": city + " ", "bought": bought,
             "age": int(age) if age else None},
            {"age": np.float32(age or "nan"), "city": city, "income": float(income or "nan")},
        ):  # fmt: skip
            features, notes = encoder.encode(row)
            np.testing.assert_array_equal(features, train[k][0])
            assert features.dtype == np.float32 and notes == []
    row = {"age": 20, "city": "Paris", "income": None, "id": 7, "name": "x"}
    features, notes = encoder.encode(row, 3)
    assert features.tolist()[2:5] == [0, 0, 0]
    assert notes == [
        "row 3: not learned from, so left out: 'id', 'name'",
        "row 3, column 'city': 'Paris' was not learned, and counts as unknown",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age": "old"}, "row 2, column 'age': 'old' is no number$"),
        ({"age": "1,5"}, "row 2, column 'age': '1,5' is no number$"),
        ({"age": float("inf")}, "row 2, column 'age': 'inf' is no number"),
        ({"age": True}, "row 2, column 'age': a bool is neither a number, nor a text, nor None"),
        ({"city": ["Rome"]}, "row 2, column 'city': a list is neither a number"),
    ],
)
def test_a_row_that_is_wrong_is_named(write, change, message):
    train, _ = data.csv_table(write(PEOPLE), target="bought")
    row = {"age": 20, "city": "Rome", "income": 1} | change
    with pytest.raises(ValueError, match=message):
        train.encoder.encode(row, 2)
    del row[next(iter(change))]
    with pytest.raises(ValueError, match=r"row 2, column '\w+': it is absent; None .*unknown"):
        train.encoder.encode(row, 2)


def test_many_unknown_categories_are_one_note(write, capsys):
    train, _ = data.csv_table(write(PEOPLE), target="bought")
    path = write("age,city,income\n1,Rome,1\n\n1,Paris,1\n1,Rom,1\n", "u.csv")
    rows, _ = data.csv_table(path, encoder=train.encoder, with_target=False)
    assert rows.notes == (
        "line 4, column 'city': 'Paris' was not learned, and counts as unknown; 1 more rows have "
        "such cells",
    )
    assert rows.lines.tolist() == [2, 4, 5] and "u.csv: line 4" in capsys.readouterr().err


def test_a_number_to_predict(write):
    text = "x,y\n" + "".join(f"{k},{k * k}.5\n" for k in range(30))
    table, _ = data.csv_table(write(text), target="y")
    targets = table[:][1]
    assert targets.shape == (30, 1) and targets.dtype == np.float32 and table.classes == ()
    assert abs(targets.mean()) < 1e-6 and abs(targets.std() - 1) < 1e-6
    np.testing.assert_allclose(
        table.encoder.restore(targets)[:, 0], np.arange(30) ** 2 + 0.5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("cells", "task", "classes"),
    [
        ("b a b a", None, ("a", "b")),
        ("10 9 10 9", None, ("9", "10")),
        ("1.0 0 1 0.0", None, ("0", "1")),
        ("-1 1 1 -1", None, ("-1", "1")),
        ("1 2 3 4", None, ()),  # as many values as rows
        ("1.5 2 1.5 2", None, ()),
        ("1.5 2 1.5 2", "classify", ("1.5", "2")),
        ("0 1 0 1", "regress", ()),
        ("1 2 3 x", "classify", ("1", "2", "3", "x")),
        ("01 1 01 1", "classify", ("01", "1")),
        ("a b c d", "classify", ("a", "b", "c", "d")),
    ],
)
def test_classes_or_numbers(write, cells, task, classes):
    text = "x,y\n" + "".join(f"{k}.5,{cell}\n" for k, cell in enumerate(cells.split()))
    table, _ = data.csv_table(write(text), target="y", task=task)
    assert table.classes == classes


def test_holding_out_rows(write):
    text = "x,c,y\n" + "".join(f"{k},{'ab'[k % 2]},{'pq'[k % 2]}\n" for k in range(40))
    train, rest = data.csv_table(write(text), target="y", validation=0.25)
    assert (len(train), len(rest)) == (30, 10)
    assert np.bincount(rest[:][1]).tolist() == [5, 5]
    assert train.encoder is rest.encoder
    assert abs(train[:][0][:, 0].mean()) < 1e-6 < abs(rest[:][0][:, 0].mean())
    again, _ = data.csv_table(write(text), target="y", validation=0.25)
    np.testing.assert_array_equal(again[:][0], train[:][0])
    with pytest.raises(ValueError, match="40 examples, too few to hold out"):
        data.csv_table(write(text), target="y", validation=0.001)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_delimiter_is_found(write, delimiter, mark, end):
    lines = ['name,"a, b; c|d",y', '"x;\n""y""",1,p', "z,2,q", "", ",,"]
    rows = list(csv.reader("\n".join(lines).splitlines(keepends=True)))
    text = "".join(
        delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) + end for row in rows
    )
    table, _ = data.csv_table(write(mark + text.encode()), target="y")
    assert table.columns == ('name=x;\n"y"', "name=z", "a, b; c|d")
    assert table[:][1].tolist() == [0, 1]


def test_other_encodings(write):
    text = "größe,y\n1,a\n2,b\n"
    for encoding in ("utf-8-sig", "utf-16"):
        assert data.csv_table(write(text, encoding=encoding), target="y")[0].columns == ("größe",)
    path = write(text, encoding="cp1252")
    with pytest.raises(ValueError, match=r"t\.csv, after line 0: it is no utf-8 text .*cp1252"):
        data.csv_table(path, target="y")
    table, _ = data.csv_table(path, target="y", encoding="cp1252")
    assert table.columns == ("größe",)
    with pytest.raises(ValueError, match="unknown encoding: klingon"):
        data.csv_table(path, target="y", encoding="klingon")


def test_decimal_commas(write):
    path = write("x;y\n1,5;a\n2,5;b\n-,5;a\n")
    with pytest.raises(ValueError, match=r"line 2, column 'x': '1,5' is no number; decimal=\",\""):
        data.csv_table(path, target="y")
    table, _ = data.csv_table(path, target="y", decimal=",")
    np.testing.assert_allclose(table.encoder.columns[0].mean, 3.5 / 3)
    assert tables._Cells(path, "x", ",", 9, None)._number("1.000,5") is None


def test_codes_that_look_like_numbers(write):
    path = write("code,y\n10,a\n20,b\n10,a\n")
    table, _ = data.csv_table(path, target="y", categorical=["code"])
    assert table.columns == ("code=10", "code=20")


def test_columns_that_are_left_out(write, capsys):
    names = "".join(f"{k},name {k},,{k % 2}\n" for k in range(100))
    path = write("x,name,void,y\n" + names)
    table, _ = data.csv_table(path, target="y")
    assert table.columns == ("x",)
    said = capsys.readouterr().err
    assert "t.csv: column 'name' has more than 64 different texts" in said
    assert "column 'void' has no cells that hold something: left out" in said
    with pytest.raises(ValueError, match="'name' has more than 64"):
        data.csv_table(path, target="y", features=["x", "name"])
    with pytest.raises(ValueError, match="has no column that could be a feature"):
        data.csv_table(
            write("name,y\n" + "".join(f"n{k},a{k % 2}\n" for k in range(99))), target="y"
        )


def test_constant_columns_and_wide_ranges(write):
    table, _ = data.csv_table(write("a,b,c,y\n0.1,1e99,1e-200,p\n0.1,-1e99,2e-200,q\n"), target="y")
    features = table[:][0]
    assert features[:, 0].tolist() == [0, 0] and features[:, 1].tolist() == [1, -1]
    assert np.isfinite(features).all()


WRONG = {
    "ragged": ("a,b\n1,2\n3\n", "line 3 has 1 cells instead of 2: '3'"),
    "long": ("a,b\n1,2\n\n3,4,5\n", "line 4 has 3 cells instead of 2"),
    "after a quoted newline": ('a,b\n"x\ny",2\n3\n', "line 4 has 1 cells"),
    "no number": ("a,b\n1,p\n2,q\n3x,p\n", "line 4, column 'a': '3x' is no number"),
    "underscore": ("a,b\n1,p\n2,q\n1_0,p\n", "line 4, column 'a': '1_0' is no number"),
    "infinite": ("a,b\n1,p\n2,p\ninf,q\n", "line 4, column 'a': 'inf' is no number"),
    "target lacks": (
        "a,b\n1,p\n2, \n3,NA\n",
        r"line 3, column 'b': nothing is there \(in 2 rows\)",
    ),
    "target mixed": ("a,b\n1,1\n2,2\n3,x\n", "line 4, column 'b': 'x' is no number; task=\"cl"),
    "one class": ("a,b\n1,p\n2,p\n", "target 'b' is 'p' in all rows: there is nothing to learn"),
    "all different": ("a,b\n1,p\n2,q\n3,r\n", "'b' has another text in each of its 3 rows"),
    "absent": ("a;c\n1;2\n", "has no column 'b', but 'a', 'c' .cells separated by ';'"),
    "delimiter": ("a:b\n1:2\n", "has no column 'b', but 'a:b' .cells separated by ','"),
    "no rows": ("a,b\n", "t.csv has no rows below the names"),
    "empty": ("", "t.csv is empty"),
    "blank": ("\ufeff\n \n", "t.csv is empty"),
    "no name": ("a,,b\n1,2,3\n", "line 1: column 2 has no name"),
    "twice": ("a,b,a\n1,2,3\n", "line 1: two columns are called 'a'"),
    "no names": ("1,2\n3,4\n", "line 1: the names of the columns should be here, these are numb"),
    "quote": ('a,b\n1,p\n2,"q\n3,r\n', "line 3: unexpected end of data"),
    "quote inside": ('a,b\n1,"p"x\n', "line 2: ',' expected after"),
    "zip": (b"PK\x03\x04abc", "is no text: save the table as CSV"),
    "binary": (b"a,b\n1,\0\n", "is no text"),
    "huge cell": ("a,b\n1," + "x" * 200_000 + "\n", "line 2: field larger than field limit"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(write, case):
    text, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        data.csv_table(write(text), target="b")


def test_rows_with_missing_cells_may_be_dropped(write):
    table = "a,b,c\n1,x,yes\n,x,no\n3,,no\n5,z,yes\n7,z,no\n"
    train, _ = data.csv_table(write(table), target="c", missing="drop")
    assert train.columns == ("a", "b=x", "b=z")  # nothing says that one is missing
    assert train.notes == ("2 rows with missing cells: left out",)
    x, y = train.__getitems__([0, 1, 2])
    np.testing.assert_allclose(x[:, 0] * 2.4944382 + 13 / 3, [1, 5, 7], rtol=1e-6)
    assert y.tolist() == [1, 1, 0]
    assert len(data.csv_table(write(table), target="c", features=["a"], missing="drop")[0]) == 4
    years = "a,year\n1,2007\n2,\n" + "3,2008\n4,2007\n" * 3
    train, _ = data.csv_table(write(years), target="year", missing="drop")
    assert train.classes == ("2007", "2008") and len(train) == 7
    with pytest.raises(ValueError, match="a cell is missing in every row"):
        data.csv_table(write("a,b,c\n,1,x\n2,,y\n"), target="c", missing="drop")


def test_options_that_are_refused(write, tmp_path):
    path = write(PEOPLE)
    for option, message in {
        "task": "task is 'classify', 'regress' or None",
        "missing": "missing is 'mean', 'drop' or 'raise'",
        "decimal": "decimal is",
        "delimiter": "a delimiter is one sign",
    }.items():
        with pytest.raises(ValueError, match=message):
            data.csv_table(path, target="bought", **{option: "???"})
    with pytest.raises(ValueError, match=r"say with target= which .* age, city, income, bought"):
        data.csv_table(path)
    with pytest.raises(ValueError, match=r"line 5, column 'age': nothing is there \(in 1 rows\)"):
        data.csv_table(path, target="bought", missing="raise")
    with pytest.raises(ValueError, match="'age' is the target, so it cannot be"):
        data.csv_table(path, target="age", features=["age", "city"])
    with pytest.raises(ValueError, match="has no column 'x'"):
        data.csv_table(path, target="bought", categorical=["x"])
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        data.csv_table(tmp_path / "nowhere.csv", target="x")
    with pytest.raises(ValueError, match="is a folder"):
        data.csv_table(tmp_path, target="x")


# No row of empty cells alone, which is left out, and no cell that means that nothing is there.
word = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8).map(str.strip)
filled = word.filter(lambda x: x.lower() not in tables.MISSING and not tables._is_number(x))
number = st.floats(-1e30, 1e30)


@given(
    rows=st.lists(st.tuples(number, filled, st.sampled_from(["p", "q"])), min_size=2, max_size=20),
    delimiter=st.sampled_from(tables.DELIMITERS),
)
def test_what_csv_writes_is_read(tmp_path_factory, rows, delimiter):
    """Numbers come back after standardisation, texts exactly, whatever signs are in them."""
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([("number", "text", "class"), *rows, (0, "more", "p"), (1, "more", "q")])
    table, _ = data.csv_table(path, target="class", delimiter=delimiter)
    rows = [*rows, (0, "more", "p"), (1, "more", "q")]
    column = table.encoder.columns[0]
    features, labels = table[:]
    np.testing.assert_allclose(
        features[:, 0] * np.float64(column.scale) + column.mean,
        [row[0] for row in rows],
        atol=4e-6 * max(abs(row[0]) for row in rows) + 1e-38,
    )
    texts = table.encoder.columns[1].categories
    assert [texts[k] for k in features[:, 1:].argmax(1)] == [row[1] for row in rows]
    assert [table.classes[k] for k in labels] == [row[2] for row in rows]
