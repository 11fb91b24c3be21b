"""What roles may do, by table."""

from __future__ import annotations

import json
import tracemalloc
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zcomm.auth.policy import GRANTED, AllowAll, Policy
from zcomm.config import Config
from zcomm.data.schema import load_schema
from zcomm.errors import ConfigError
from zcomm.host.program import Program
from zcomm.interfaces import ACTIONS, NO_FIELD_RIGHTS, RIGHTS, FieldRights, Identity, Permissions, field_rights

POLICY = Policy.from_yaml(
    """
admin:
  models: {"*": "*"}
  functions: "*"
  pages: "*"
  files: "*"
  commands: "*"
clerk:
  models:
    "*": [read]
    Orders: [create, read, update]
    Salaries: []
    Notes: "*"
  functions: [calculateTotal, greet]
  pages: ["/orders", "/orders/*"]
  files: ["*.yaml", "public/*", "read[me].txt"]
  commands: [report]
  admin: [metrics]
auditor:
  models: "*"
  admin: "*"
reader:
  models: {Users: [read]}
member:
  models:
    Users: {actions: [read, update], rows: {name: $name, active: true}}
    Orders: {rows: {of: $role, region: 3}, actions: "*"}
    Teams: {actions: [read]}
idle:
""",
    "policy.yaml",
)


def who(role: str) -> Identity:
    return Identity("somebody", role)


@pytest.mark.parametrize(
    ("role", "model", "granted"),
    [
        ("admin", "Users", "create read update delete upsert"),
        ("admin", "Anything", "create read update delete upsert"),
        ("auditor", "Users", "create read update delete upsert"),
        ("clerk", "Users", "read"),
        ("clerk", "Orders", "create read update"),
        ("clerk", "Salaries", ""),
        ("clerk", "Notes", "create read update delete upsert"),
        ("clerk", "orders", "read"),
        ("clerk", "*", "read"),
        ("reader", "Users", "read"),
        ("reader", "Orders", ""),
        ("idle", "Users", ""),
        ("guest", "Users", ""),
        ("", "Users", ""),
        ("*", "Users", ""),
        ("Admin", "Users", ""),
    ],
)
def test_models(role: str, model: str, granted: str):
    """A named model is granted what stands there and nothing of the star; what is not granted is denied."""
    assert [action for action in ACTIONS if POLICY.allows(who(role), action, "model", model)] == granted.split()
    assert not POLICY.allows(who(role), "drop", "model", model)
    assert not POLICY.allows(who(role), "*", "model", model)


@pytest.mark.parametrize(
    ("role", "model", "granted", "rows"),
    [
        ("member", "Users", "read update", {"name": "somebody", "active": True}),
        ("member", "Orders", "create read update delete upsert", {"of": "member", "region": 3}),
        ("member", "Teams", "read", {}),
        ("member", "Other", "", {}),
        ("clerk", "Orders", "create read update", {}),
        ("guest", "Users", "", {}),
    ],
)
def test_rows(role: str, model: str, granted: str, rows: dict[str, object]):
    """Actions reach the rows that stand beside them, in which the user's own name and role are filled in."""
    assert [action for action in ACTIONS if POLICY.allows(who(role), action, "model", model)] == granted.split()
    assert POLICY.rows(who(role), model) == rows


def test_models_of_which_some_rows_are_granted_are_listed():
    """With an example of the rows, so that they can be held against a schema."""
    assert [(each.role, each.model, dict(each.rows)) for each in POLICY.narrow_grants()] == [
        ("member", "Users", {"name": "member", "active": True}),
        ("member", "Orders", {"of": "member", "region": 3}),
    ]


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("admin", ["calculateTotal", "greet", "deleteAll"]),
        ("clerk", ["calculateTotal", "greet"]),
        ("reader", []),
        ("idle", []),
        ("guest", []),
    ],
)
def test_functions(role: str, names: list[str]):
    """Functions are granted one by one, or all."""
    assert [
        name for name in ("calculateTotal", "greet", "deleteAll") if POLICY.allows(who(role), "call", "function", name)
    ] == names


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("admin", ["report", "reset"]),
        ("clerk", ["report"]),
        ("reader", []),
        ("guest", []),
    ],
)
def test_commands(role: str, names: list[str]):
    """So are custom commands."""
    assert [name for name in ("report", "reset") if POLICY.allows(who(role), "use", "command", name)] == names


@pytest.mark.parametrize(
    ("role", "pages"),
    [
        ("admin", ["/orders", "/orders/1", "/orders/1/edit", "/ordersX", "/admin", "/"]),
        ("clerk", ["/orders", "/orders/1", "/orders/1/edit"]),
        ("reader", []),
        ("guest", []),
    ],
)
def test_pages(role: str, pages: list[str]):
    """Pages are granted by path or pattern; a star takes in what is below."""
    asked = ["/orders", "/orders/1", "/orders/1/edit", "/ordersX", "/admin", "/"]
    assert [page for page in asked if POLICY.allows(who(role), "visit", "page", page)] == pages


@pytest.mark.parametrize(
    ("role", "files"),
    [
        ("admin", ["a.yaml", "a.YAML", "public/a.txt", "readm.txt", "readx.txt", "secret.txt"]),
        ("clerk", ["a.yaml", "public/a.txt", "readm.txt"]),
        ("reader", []),
        ("guest", []),
    ],
)
def test_files(role: str, files: list[str]):
    """Files too; patterns tell upper from lower case on every machine."""
    asked = ["a.yaml", "a.YAML", "public/a.txt", "readm.txt", "readx.txt", "secret.txt"]
    assert [file for file in asked if POLICY.allows(who(role), "open", "file", file)] == files


@pytest.mark.parametrize(("role", "granted"), [("admin", False), ("clerk", True), ("auditor", True), ("guest", False)])
def test_what_is_for_those_who_run_the_server(role: str, granted: bool):
    """With a policy it says who may see the metrics, of the role admin as of any other; it grants nothing else."""
    operator = Identity("ann", role, "operator-0123")
    for identity in (who(role), operator):
        assert POLICY.allows(identity, "use", "admin", "metrics") is granted
    assert not POLICY.allows(who("clerk"), "use", "admin", "other")


def test_without_a_policy_the_operator_is_who_runs_the_server():
    """By its own token, whatever its role, or by the role admin; nobody else."""
    answers = {
        identity: AllowAll().allows(identity, "use", "admin", "metrics")
        for identity in (
            Identity("ann", "admin", "a1"),
            Identity("ann", "boss", "operator-0123"),
            Identity("ann", "user", "a2"),
            Identity("operator-", "Admin", "a3"),
            Identity("anonymous", "guest"),
        )
    }
    assert list(answers.values()) == [True, True, False, False, False]


def test_without_a_policy_everything_is_allowed():
    """Whoever is let in may do everything, as long as no policy file is given."""
    allowed, nobody = AllowAll(), who("")
    assert all(allowed.allows(nobody, action, "model", "Users") for action in ACTIONS)
    assert allowed.rows(nobody, "Users") == {}
    assert (
        allowed.allows(nobody, "call", "function", "f")
        and allowed.allows(nobody, "visit", "page", "/")
        and allowed.allows(nobody, "open", "file", "a")
    )
    assert allowed.allows(nobody, "use", "command", "c")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "nobody may do anything"),
        ("# nothing", "nobody may do anything"),
        ("{}", "nobody may do anything"),
        ("[]", "must map each role"),
        ("admin", "must map each role"),
        ("5", "must map each role"),
        ("a: [", "line 1, column 5"),
        ("a: {b", "line 1"),
        ("\tb: 1", "line 1, column 1"),
        ("a: !!python/name:os.system x", "constructor"),
        ("a: !!python/object/apply:os.system ['id']", "constructor"),
        ("a: \0", "YAML"),
        ("a: 1\n---\nb: 2", "single document"),
        ("a: *b", "undefined alias"),
        ("? {a: 1}\n: {}", "unhashable key"),
        ("5: {}", "the role 5 is not text"),
        ("yes: {}", "the role True is not text; put it in quotes"),
        ("null: {}", "role None"),
        ("' ': {}", "is not text"),
        ("admin: '*'", "role admin: must map models, functions"),
        ("admin: [read]", "role admin: must map"),
        ("admin: {}\nguest: {}\nadmin: {}", "line 3, column 1: 'admin' is given twice"),
        ("a: {models: {U: [read], U: '*'}}", "'U' is given twice"),
        ("a: {model: {}}", "role a: unknown key 'model'; did you mean \"models\"?"),
        ("a: {fnctions: []}", "role a: unknown key 'fnctions'; did you mean \"functions\"?"),
        ("a: {xyz: 1}", "'xyz'; known are models, functions, pages, files, commands, topics, admin"),
        ("a: {admin: [metric]}", "role a: admin: there is no 'metric'; did you mean \"metrics\"?"),
        ("a: {admin: [metrics, kick]}", "role a: admin: there is no 'kick'; known are metrics"),
        ("a: {admin: ['metr*']}", "role a: admin: there is no 'metr*'"),
        ("a: {admin: metrics}", 'role a: admin: must be "*" or a list of names'),
        ("a: {admin: true}", 'role a: admin: must be "*" or a list of names'),
        ("a: {5: 1}", "role a: unknown key 5; known are"),
        ("a: {models: [Users]}", "role a: models must map each model"),
        ("a: {models: read}", "role a: models must map each model"),
        ("a: {models: {5: [read]}}", "role a: models: 5 is not text"),
        ("a: {models: {Users: read}}", "role a: models: Users: must be \"*\" or a list of actions, not 'read'"),
        ("a: {models: {Users: [raed]}}", "role a: models: Users: unknown action 'raed'; did you mean \"read\"?"),
        ("a: {models: {Users: [drop]}}", "role a: models: Users: unknown action 'drop'"),
        ("a: {models: {Users: [READ]}}", "unknown action 'READ'"),
        ("a: {models: {Users: [upsert]}}", "models: Users: an upsert takes the rights to create and to update"),
        ("a: {models: {Users: [read, create, upsert]}}", "grant both"),
        ("a: {models: {Users: {actions: [update, upsert]}}}", "grant both"),
        ("a: {models: {Users: [5]}}", "role a: models: Users: 5 is not text"),
        ("a: {models: {Users: {read: true}}}", "models: Users: unknown key 'read'; known are actions, rows, fields"),
        ("a: {models: {Users: {action: [read]}}}", "unknown key 'action'; did you mean \"actions\"?"),
        ("a: {models: {Users: {actions: read}}}", 'must be "*" or a list of actions'),
        ("a: {models: {Users: {rows: [name]}}}", "Users: rows: must map fields to values"),
        ("a: {models: {Users: {rows: {}}}}", "Users: rows: must map fields to values"),
        ("a: {models: {Users: {rows: null}}}", "Users: rows: must map fields to values"),
        ("a: {models: {Users: {rows: {5: x}}}}", "Users: rows: 5 is not text"),
        (
            "a: {models: {Users: {rows: {name: [x]}}}}",
            "Users: rows: name: must be a text, a whole number, true or false",
        ),
        ("a: {models: {Users: {rows: {name: null}}}}", "Users: rows: name: must be a text"),
        ("a: {models: {Users: {rows: {name: 1.5}}}}", "Users: rows: name: must be a text"),
        ("a: {models: {Users: {rows: {name: $nmae}}}}", "unknown value '$nmae'; did you mean \"$name\"?"),
        ("a: {models: {Users: {rows: {name: $x}}}}", "unknown value '$x'; known are $name, $role"),
        ("a: {models: {'*': {actions: [read], rows: {name: x}}}}", "only a model that is named has rows"),
        ("a: {models: {Users: null}}", "not None"),
        ("a: {models: {Users: {actions: [read], feilds: {}}}}", "unknown key 'feilds'; did you mean \"fields\"?"),
        ("a: {models: {Users: {fields: {hide: [x]}}}}", "Users: fields grant nothing by themselves; say the actions"),
        (
            "a: {models: {Users: {actions: [read], fields: [x]}}}",
            "Users: fields: must be what is hidden or read-only, like {hide",
        ),
        ("a: {models: {Users: {actions: [read], fields: {}}}}", "Users: fields: must be what is hidden"),
        ("a: {models: {Users: {actions: [read], fields: null}}}", "Users: fields: must be what is hidden"),
        (
            "a: {models: {Users: {actions: [read], fields: {hidden: [x]}}}}",
            "fields: unknown key 'hidden'; did you mean \"hide\"?",
        ),
        (
            "a: {models: {Users: {actions: [read], fields: {read_only: [x]}}}}",
            "unknown key 'read_only'; did you mean \"readonly\"?",
        ),
        ("a: {models: {Users: {actions: [read], fields: {xyz: [x]}}}}", "unknown key 'xyz'; known are hide, readonly"),
        (
            "a: {models: {Users: {actions: [read], fields: {hide: x}}}}",
            "hide: must be a list of fields, like [salary], not 'x'",
        ),
        ("a: {models: {Users: {actions: [read], fields: {hide: '*'}}}}", "hide: must be a list of fields"),
        ("a: {models: {Users: {actions: [read], fields: {hide: []}}}}", "hide: must be a list of fields"),
        ("a: {models: {Users: {actions: [read], fields: {hide: {x: 1}}}}}", "hide: must be a list of fields"),
        ("a: {models: {Users: {actions: [read], fields: {hide: [yes]}}}}", "hide: True is not text; put it in quotes"),
        ("a: {models: {Users: {actions: [read], fields: {readonly: ['']}}}}", "readonly: '' is not text"),
        ("a: {models: {Users: {actions: [read], fields: {hide: [x, x]}}}}", "fields: x stands in hide twice"),
        (
            "a: {models: {Users: {actions: [read], fields: {readonly: [x], hide: [x]}}}}",
            "x stands in hide and in readonly; hide is both",
        ),
        (
            "a: {models: {'*': {actions: [read], fields: {hide: [x]}}}}",
            "only a model that is named has fields; name each",
        ),
        ("a: {functions: calculateTotal}", "role a: functions: must be \"*\" or a list of names, not 'calculateTotal'"),
        ("a: {functions: ['calc*']}", "role a: functions: 'calc*': no patterns here"),
        ("a: {functions: [yes]}", "functions: True is not text"),
        ("a: {commands: {report: 1}}", "role a: commands: must be"),
        ("a: {pages: /orders}", "role a: pages: must be"),
        ("a: {pages: ['']}", "role a: pages: '' is not text"),
        ("a: {files: [null]}", "role a: files: None is not text"),
        pytest.param("[" * 2000, "not YAML", marks=pytest.mark.unmeasured, id="deep"),
    ],
)
def test_mistakes_are_named(text: str, reason: str):
    """What would grant or deny something unmeant is one clear error with the file, the role and the key."""
    with pytest.raises(ConfigError) as caught:
        Policy.from_yaml(text, "policy.yaml")
    assert caught.value.name == "policy.yaml"
    assert reason in str(caught.value) and len(str(caught.value)) < 300


def test_fields():
    """They are of one role and one model; whoever is restricted nowhere gets the one object that says so."""
    policy = Policy.from_yaml(
        """
clerk:
  models:
    "*": "*"
    Users: {actions: [read, update], fields: {hide: [salary, secret], readonly: [role]}, rows: {name: $name}}
    Notes: {actions: [read], fields: {readonly: [id]}}
    Teams: {actions: [read]}
boss: {models: "*"}
""",
        "policy",
    )
    rights = FieldRights({"salary", "secret"}, {"role"})
    assert policy.fields(who("clerk"), "Users") == rights
    assert policy.fields(who("clerk"), "Notes") == FieldRights(readonly=["id"])
    for role, model in (("clerk", "Teams"), ("clerk", "users"), ("clerk", "*"), ("boss", "Users"), ("none", "Users")):
        assert policy.fields(who(role), model) is NO_FIELD_RIGHTS
    assert AllowAll().fields(who("clerk"), "Users") is NO_FIELD_RIGHTS
    assert [tuple(each) for each in policy.narrow_grants()] == [
        ("clerk", "Users", frozenset({"read", "update"}), {"name": "clerk"}, rights),
        ("clerk", "Notes", frozenset({"read"}), {}, FieldRights(readonly=["id"])),
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ("{hide: [salry]}", 'role a: models: Users: fields: hide: Users has no field "salry"; did you mean "salary"?'),
        ("{hide: [id]}", "role a: models: Users: fields: hide: Users.id is the primary key"),
        ("{readonly: [name]}", "role a: models: Users: fields: readonly: Users.name is required"),
    ],
)
def test_fields_are_held_against_the_schema(tmp_path: Path, fields: str, reason: str):
    """At the start and each time that the file is read again, when the rights from before go on."""
    schema = load_schema("Users: {id: {type: int, pk: true}, name: {type: str, required: true}, salary: int}")
    path = tmp_path / "policy.yaml"

    def write(fields: str) -> None:
        path.write_text(f"a: {{models: {{Users: {{actions: [read, create], fields: {fields}}}}}}}")

    write(fields)
    with pytest.raises(ConfigError) as caught:
        Program(Config(tmp_path, policy=path), None, schema)
    assert reason in str(caught.value)
    write("{hide: [salary]}")
    program = Program(Config(tmp_path, policy=path), None, schema)
    write(fields)
    with pytest.raises(ConfigError) as caught:
        program.reload()
    assert reason in str(caught.value)
    assert field_rights(program.permissions, who("a"), "Users").hide == {"salary"}
    write("{readonly: [salary]}")
    program.reload()
    assert field_rights(program.permissions, who("a"), "Users") == FieldRights(readonly=["salary"])


@pytest.mark.parametrize("value", ['"*"', '["*"]', "[greet, '*']"])
def test_everything_has_two_spellings(value: str):
    """A star grants everything, alone or in a list."""
    policy = Policy.from_yaml(f"a: {{functions: {value}, pages: {value}}}", "policy")
    assert policy.allows(who("a"), "call", "function", "anything") and policy.allows(who("a"), "visit", "page", "/x")
    policy = Policy.from_yaml("a: {models: {Users: ['*']}}", "policy")
    assert policy.allows(who("a"), "delete", "model", "Users")


def test_a_file_is_read(tmp_path: Path):
    """From a path; one that is none, is no regular file or cannot be read is an error that names it."""
    path = tmp_path / "policy.yaml"
    path.write_text("guest: {models: {Users: [read]}}")

    def permissions(path: Path) -> Permissions:
        return Program(Config(tmp_path, policy=path), reactor=None).permissions

    assert permissions(path).allows(who("guest"), "read", "model", "Users")
    with pytest.raises(ConfigError, match="No such file"):
        permissions(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="is no regular file"):
        permissions(tmp_path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        permissions(path)


YAMLISH = st.recursive(
    st.sampled_from(["*", "read", "admin", "Users", 5, None, True, ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["admin", "models", "functions", "pages", "files", "commands", "Users", "*"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(YAMLISH)
@settings(max_examples=300)
def test_a_policy_is_valid_or_an_error(document: object):
    """Nothing else comes of any document, and a role that is not named may do nothing."""
    try:
        policy = Policy.from_yaml(json.dumps(document), "p")
    except ConfigError:
        return
    stranger = who("stranger")
    assert not any(policy.allows(stranger, action, "model", "Users") for action in ACTIONS)
    assert not policy.allows(stranger, "call", "function", "f") and not policy.allows(stranger, "open", "file", "a")


TOPICS = """
member:
  topics:
    "room:*": [subscribe, publish, presence, history]
    "*:1": [presence]
    "room:board": [subscribe]
    "user:$name": [subscribe, history]
    "team:$role:*": "*"
other: {topics: "*"}
none: {models: "*"}
"""


@pytest.mark.parametrize(
    ("name", "role", "topic", "granted"),
    [
        ("ann", "member", "room:2", "subscribe publish presence history"),
        ("ann", "member", "hall:1", "presence"),
        ("ann", "member", "room:board", "subscribe"),
        ("ann", "member", "user:ann", "subscribe history"),
        ("ann", "member", "user:bob", ""),
        ("ann", "member", "user:annette", ""),
        ("ann", "member", "team:member:x", "subscribe publish presence history"),
        ("ann", "member", "team:other:x", ""),
        ("a*", "member", "user:ann", ""),
        ("a*", "member", "user:a%2A", "subscribe history"),
        ("Zoë/1", "member", "user:Zo%C3%AB%2F1", "subscribe history"),
        ("ann", "other", "anything", "subscribe publish presence history"),
        ("ann", "none", "room:2", ""),
        ("ann", "unknown", "room:2", ""),
    ],
)
def test_topics_by_pattern_and_by_own_name(name: str, role: str, topic: str, granted: str):
    """Patterns grant together, a name by itself alone; a user's own name is meant literally."""
    policy = Policy.from_yaml(TOPICS, "policy.yaml")
    for _ in range(2):
        found = [each for each in RIGHTS["topic"] if policy.allows(Identity(name, role), each, "topic", topic)]
        assert " ".join(found) == granted
    assert not policy.allows(Identity(name, role), "read", "topic", topic)


@given(
    patterns=st.lists(
        st.text("ab:%$*", min_size=1, max_size=6).map(lambda text: text.replace("$", "$name")), min_size=1, max_size=5
    ),
    asked=st.lists(
        st.tuples(st.sampled_from(["a", "b", "%", "a*"]), st.sampled_from("mn"), st.text("ab:%2A5", max_size=8)),
        max_size=12,
    ),
)
@example(
    ["$name:*"], [("a", "m", "a:1"), ("b", "m", "a:1"), ("a", "n", "b:1"), ("a*", "m", "a%2A:"), ("%", "m", "%25:")]
)
@settings(max_examples=150)
def test_what_is_remembered_of_a_topic_is_that_topic_s(patterns: list[str], asked: list[tuple[str, str, str]]):
    """However often and in whatever order users of all roles ask, they are granted what the patterns say."""
    rights = dict(zip(patterns, RIGHTS["topic"] * 2, strict=False))
    document = {"m": {"topics": {pattern: [right] for pattern, right in rights.items()}}, "n": {"topics": {"a*": "*"}}}
    policy = Policy.from_yaml(json.dumps(document), "p")
    for name, role, topic in asked + asked:
        own = quote(name)
        expected = {right for pattern, right in rights.items() if fnmatchcase(topic, pattern.replace("$name", own))}
        alone = {right for pattern, right in rights.items() if pattern.replace("$name", own) == topic}
        if role == "n":
            expected, alone = (set(RIGHTS["topic"]) if topic.startswith("a") else set()), set()
        found = {each for each in RIGHTS["topic"] if policy.allows(Identity(name, role), each, "topic", topic)}
        assert found == (alone or expected)


def test_what_is_remembered_of_topics_is_little_and_of_now():
    """Whoever asks for ever new topics takes no more memory; rights that change hold at once."""
    policy = Policy.from_yaml('m: {topics: {"x*": [publish], "$name*": [publish]}}', "p")
    ann = Identity("ann", "m")

    def ask(count: int, start: str) -> int:
        for number in range(count):
            assert policy.allows(ann, "publish", "topic", f"x{start}{number}".ljust(255, "x"))
            assert not policy.allows(ann, "publish", "topic", "y" * 20_000 + str(number))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = ask(3 * GRANTED, "a")
        assert before < 10_000_000
        assert ask(3 * GRANTED, "b") < before + 100_000
    finally:
        tracemalloc.stop()
    policy.become(Policy.from_yaml('m: {topics: {"xa*": [publish]}}', "p"))
    last = f"xb{3 * GRANTED - 1}".ljust(255, "x")
    assert not policy.allows(ann, "publish", "topic", last)
    policy.become(Policy.from_yaml('m: {topics: {"x*": [publish]}}', "p"))
    assert policy.allows(ann, "publish", "topic", last) and not policy.allows(ann, "subscribe", "topic", last)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: {topics: [room]}", 'role a: topics: must be "*", or map patterns such as'),
        ('a: {topics: {"room:*": [speak]}}', "role a: topics: room:*: unknown action 'speak'"),
        ('a: {topics: {"room:*": [subscrib]}}', 'did you mean "subscribe"'),
        ('a: {topics: {"room 1": [subscribe]}}', "names have letters, digits and"),
        ('a: {topics: {"user:$nam": [subscribe]}}', "names have letters, digits and"),
        ('a: {topics: {"room:{id}": [subscribe]}}', "names have letters, digits and"),
        ("a: {topics: {5: [subscribe]}}", "5 is not text; put it in quotes"),
        ('a: {topics: {"room:*": subscribe}}', 'must be "*" or a list of actions'),
    ],
)
def test_mistakes_in_topics_are_named(text: str, reason: str):
    """With the role and the pattern."""
    with pytest.raises(ConfigError) as caught:
        Policy.from_yaml(text, "policy.yaml")
    assert reason in str(caught.value)
