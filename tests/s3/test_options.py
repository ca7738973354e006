"""How the store is chosen and what it is told."""

from __future__ import annotations

import subprocess
import sys

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stroma.config import open_store
from stroma.errors import ConfigError, StoreUnusable
from stroma.plugins import list_plugins
from stroma.records import RecordKey
from stroma_s3 import S3Options, S3Store
from stroma_s3._keys import MAX_KEY_BYTES, MAX_PREFIX_BYTES, Keys, checked_prefix, part_of
from stroma_s3._plugin import S3Factory

IDS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1)


def options_of(url: str) -> dict[str, object]:
    return dict(S3Factory().from_url(url))


def test_a_url_names_bucket_prefix_and_options() -> None:
    url = "s3://bucket/some/prefix/?endpoint_url=http://localhost:9000&region=eu-central-1"
    assert options_of(url) == {
        "bucket": "bucket",
        "prefix": "some/prefix",
        "endpoint_url": "http://localhost:9000",
        "region": "eu-central-1",
    }
    assert options_of("s3://bucket") == {"bucket": "bucket"}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3:///prefix", "bucket is missing"),
        ("s3://key:secret@bucket", "credentials do not go into the URL"),
        ("s3://key:se/cret@bucket", "credentials do not go into the URL"),
        ("s3://bucket?access_key_id=a&region=b", "credentials do not go into the URL"),
        ("s3://bucket?secret_access_key=hush", "credentials do not go into the URL"),
        ("s3://bucket?session_token=hush", "credentials do not go into the URL"),
        ("s3://bucket?prefix=a", "before the question mark"),
    ],
)
def test_a_url_that_cannot_be_one(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options_of(url)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckett": "b"}, "no option 'buckett'.*endpoint_url"),
        ({"access_key_id": "a"}, "given together"),
        ({"session_token": "a"}, "session_token goes with"),
        ({"sse_kms_key_id": "k"}, "sse_kms_key_id goes with"),
        ({"sse": "rot13"}, "sse"),
        ({"read_timeout_seconds": float("nan")}, "read_timeout_seconds: .*a finite number"),
        ({"access_key_id": "a", "secret_access_key": "b", "profile": "p"}, "exclude"),
        ({"prefix": "a/../b"}, "prefix"),
        ({"prefix": "a//b"}, "prefix"),
        ({"prefix": "x" * (MAX_PREFIX_BYTES + 1)}, "shorter"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        S3Store("bucket", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["http://app:hush@host:9000", "http://app:hu/hush@host"])
def test_credentials_of_an_endpoint_are_refused_and_not_repeated(url: str) -> None:
    for refuse in (
        lambda: S3Store("bucket", endpoint_url=url),
        lambda: S3Options(bucket="bucket", endpoint_url=url),
    ):
        with pytest.raises((ConfigError, ValidationError), match="endpoint_url") as refused:
            refuse()
        assert "it holds credentials" in str(refused.value)
        assert "hush" not in f"{refused.value!r} {refused.value.__cause__!r}"


def test_a_client_brings_its_own_settings() -> None:
    with pytest.raises(ConfigError, match="region cannot be given beside a client"):
        S3Store("bucket", client=object(), region="eu-central-1")  # type: ignore[arg-type]


def test_a_client_of_the_wrong_type_is_named() -> None:
    with pytest.raises(ConfigError, match=r"a client of boto3, not builtins\.int"):
        S3Store("bucket", client=5)  # type: ignore[arg-type]
    client = boto3.client("sts", region_name="eu-central-1")
    with pytest.raises(ConfigError, match="of s3, not of sts"):
        S3Store("bucket", client=client)  # type: ignore[arg-type]
    client.close()


def test_the_model_refuses_what_it_does_not_have() -> None:
    assert S3Options.model_config["extra"] == "forbid"
    assert S3Options.model_config["frozen"] is True


def test_secrets_are_never_shown() -> None:
    given_options = {"access_key_id": "id", "secret_access_key": "hush", "session_token": "hush"}
    store = S3Store("bucket", **given_options)
    options = S3Options(bucket="bucket", **given_options)  # type: ignore[arg-type]
    assert "hush" not in repr(store) + repr(options) + str(options)
    with pytest.raises(ConfigError) as refused:
        S3Store("bucket", secret_access_key="hush")
    assert "hush" not in repr(refused.value)
    assert refused.value.__cause__ is None
    with pytest.raises(ConfigError) as refused_type:
        S3Store("bucket", access_key_id="a", secret_access_key=["hush"])
    assert "hush" not in str(refused_type.value)


async def test_what_boto3_cannot_use_is_told_without_its_traceback() -> None:
    store = S3Store("bucket", profile="no such profile")
    with pytest.raises(StoreUnusable, match="no such profile"):
        await store.setup()
    await store.aclose()


@given(st.lists(IDS, min_size=2, max_size=2, unique=True))
def test_no_two_ids_give_one_part(ids: list[str]) -> None:
    one, two = map(part_of, ids)
    assert one != two
    assert not one.startswith(two + "/")


@pytest.mark.parametrize("id_", ["", ".", "..", "a/b", "*", "~", "a\\", "é" * 256, "x" * 512])
def test_a_part_is_one_part_and_short(id_: str) -> None:
    part = part_of(id_)
    assert part not in {"", ".", ".."}
    assert "/" not in part
    assert len(part) <= 192


def test_no_key_is_longer_than_keys_may_be() -> None:
    keys = Keys(checked_prefix("é" * (MAX_PREFIX_BYTES // 2)))
    longest = "\N{GRINNING FACE}" * 128
    for id_ in (longest, "x" * 192):
        for key in (
            keys.plain(RecordKey(id_, -1, id_, "attempt", 10**9)),
            keys.slot(id_, "f" * 40, 10**9),
        ):
            assert len(key.encode()) <= MAX_KEY_BYTES


def test_keys_of_another_store_in_a_prefix_of_this_one_are_not_its_own() -> None:
    outer = Keys("a/")
    for inner in (Keys("a/runs/"), Keys("a/logs/"), Keys("a/plain/")):
        plain = inner.plain(RecordKey("r", -1, "n"))
        for key in (inner.head("r"), inner.slot("r", "log", 1), plain, inner.marker):
            if key.startswith(outer.heads):
                assert outer.run_of_head(key) is None
            if key.startswith(outer.logs):
                assert outer.parse_log(key) is None
            for run_id in ("runs", "logs", "plain"):
                if key.startswith(outer.plain_of(run_id)):
                    assert not outer.is_plain_of(run_id, key)


def test_opening_a_store_by_url_makes_no_client() -> None:
    factory = S3Factory()
    store = factory.open(factory.options(**options_of("s3://bucket/p")))  # type: ignore[arg-type]
    assert repr(store) == "S3Store('s3://bucket/p/')"


def test_the_plugin_module_is_light() -> None:
    code = (
        "import sys, stroma_s3._plugin as p, stroma\n"
        "from stroma.registry import StoreRegistry\n"
        "r = StoreRegistry(); p.stroma_register_stores(r)\n"
        "assert r.factories['s3'][1] == ('s3',)\n"
        "print([m for m in ('boto3', 'botocore', 'stroma_s3._options') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_boto3_is_not_imported_before_the_first_operation() -> None:
    code = (
        "import sys\nfrom stroma_s3 import S3Store\nS3Store('bucket')\n"
        "print('boto3' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_it_is_found_by_name_where_it_is_installed() -> None:
    if all(plugin.name != "s3" for plugin in list_plugins()):
        pytest.skip("stroma-s3 is on the path, and not installed")
    assert isinstance(open_store("s3", {"bucket": "bucket"}), S3Store)
    assert isinstance(open_store("s3://bucket/prefix"), S3Store)
