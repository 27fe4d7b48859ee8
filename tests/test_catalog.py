"""Methods are found by themselves; policies round-trip through text; what is wrong is said in one line."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tenuto
from tenuto import catalog
from tenuto.diffusion.policies.adacorrection import AdaCorrection
from tenuto.errors import PolicyError
from tenuto.kv.policy import Combined

OWN = {"adacorrection", "every_n", "fastcache", "first_block", "taylorseer", "teacache"}
KV = {"adakv", "kivi", "knorm", "snapkv", "streaming_llm"}
OTHERS = {
    "attention": {"mka", "fastmka", "pi_attention", "short_conv", "window"},
    "prompt": {"semtoken", "drop_norm", "drop_surprise", "fixed", "random_spans"},
    "reuse": {"cacheblend", "cachecraft", "concatenate", "full"},
    "shards": {"blocks", "cluster_kv", "page_summary", "pikv", "round_robin"},
}


def test_every_policy_file_is_found() -> None:
    assert set(catalog.methods()) >= OWN | KV
    assert set(catalog.methods("diffusion")) >= OWN
    assert set(catalog.methods("kv")) >= KV
    assert not set(catalog.methods("kv")) & OWN
    assert catalog.methods()["every_n"].cls is tenuto.EveryN
    assert all(info.summary for info in catalog.methods().values())
    assert {catalog.method(name).family for name in KV} == {"kv"}
    for family, names in OTHERS.items():
        assert set(catalog.methods(family)) >= names
        assert {catalog.method(name).family for name in names} == {family}


@pytest.mark.parametrize("name", catalog.methods())
def test_every_method_says_where_it_comes_from(name: str) -> None:
    cls = catalog.method(name).cls
    assert cls.paper or cls.baseline, "a method without a paper is a baseline"
    assert not (cls.baseline and cls.claims), "a baseline claims nothing"
    assert all(claim.quantity and claim.value and claim.model and claim.source for claim in cls.claims)
    for text in (name, *cls.sweep, *cls.trials):
        if text != name or not catalog.method(name).wraps:
            assert catalog.text(catalog.parse(text)) == catalog.text(catalog.parse(catalog.text(catalog.parse(text))))


def test_older_names_are_read() -> None:
    for old, new in {
        "pi": "pi_attention",
        "random:seed=3": "random_spans:seed=3",
        "key_cluster": "cluster_kv",
        "expert": "pikv",
        "round_robin+bound:keep=0.5": "round_robin+page_summary:keep=0.5,by=bound",
        "round_robin+router": "round_robin+pikv:read=router",
    }.items():
        assert catalog.text(catalog.parse(old)) == new
    with pytest.raises(PolicyError, match="write option 'by' once"):
        catalog.parse("bound:by=both")
    assert catalog.method("pi").name == "pi_attention"


@pytest.mark.processes
def test_the_catalog_needs_no_model_library() -> None:
    code = "import sys; sys.modules.update(transformers=None, diffusers=None); from tenuto import catalog; "
    code += "print(*[catalog.text(catalog.parse(name)) for name in ('mka', 'pikv', 'semtoken', 'full', 'knorm')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["mka", "pikv", "semtoken", "full", "knorm"], done.stderr


def test_text_is_short_and_comes_back() -> None:
    assert catalog.text(tenuto.EveryN()) == "every_n"
    assert catalog.text(tenuto.EveryN(n=5)) == "every_n:n=5"
    third = tenuto.FirstBlock(threshold=1 / 3, warmup=4)
    assert catalog.text(third) == "first_block:threshold=0.3333333333333333,warmup=4"
    assert catalog.parse(catalog.text(third)) == third


@pytest.mark.parametrize("name", sorted(OWN | KV))
def test_sweeps_round_trip(name: str) -> None:
    info = catalog.method(name)
    assert info.cls.sweep
    for given in info.cls.sweep:
        policy = catalog.parse(given)
        assert type(policy) is info.cls
        assert catalog.parse(catalog.text(policy)) == policy


def test_types_come_from_the_dataclass(plugin: str) -> None:
    policy = catalog.parse("sixth: pace=3, eager=TRUE, label=b c")
    module = sys.modules[plugin]
    assert policy == module.Sixth(pace=3.0, eager=True, label="b c")
    assert catalog.text(policy) == "sixth:pace=3.0,eager=true,label=b c"
    assert catalog.parse(catalog.text(policy)) == policy
    assert isinstance(policy.pace, float)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("evry_n", "Unknown policy 'evry_n'. Did you mean 'every_n' (diffusion)? `tenuto methods` lists all"),
        ("mkas", "Did you mean 'mka' (attention)?"),
        ("pkiv", "Did you mean 'pikv' (shards)?"),
        ("cachblend", "Did you mean 'cacheblend' (reuse)?"),
        ("semtokn", "Did you mean 'semtoken' (prompt)?"),
        ("", "Unknown policy ''"),
        ("first_block:treshold=1", "no option 'treshold'. Did you mean 'threshold'? Allowed: threshold, warmup"),
        ("every_n:n=2.5", "n=2.5 is not allowed: give a whole number"),
        ("first_block:threshold=x", "threshold=x is not allowed: give a number"),
        ("first_block:threshold=nan", "threshold=nan is not allowed"),
        ("every_n:n=2,n=3", "write option 'n' once"),
        ("every_n:n", "as n=VALUE"),
        ("every_n:", "no option ''"),
        ("every_n:n=0", "n=0"),
        ("evry_n+adacorrection", "Unknown policy 'evry_n'. Did you mean 'every_n' (diffusion)?"),
        ("every_n+adacorection", "Unknown policy 'adacorection'. Did you mean 'adacorrection' (diffusion)?"),
        ("every_n+", "Unknown policy ''"),
        ("+adacorrection", "Unknown policy ''"),
        ("adacorrection", "goes around another policy: write it after one, for example every_n:n=2+adacorrection"),
        ("every_n+first_block", "first_block cannot follow a plus: it wraps no other policy. Those that do: adacorr"),
        ("every_n+adacorrection+first_block", "first_block cannot follow a plus"),
        ("every_n+adacorrection:inner=every_n", "no option 'inner'"),
        ("every_n+adacorrection+adacorrection", "not around itself"),
    ],
)
def test_what_is_wrong_is_said(given: str, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        catalog.parse(given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_flag_of_a_plugin(plugin: str) -> None:
    with pytest.raises(PolicyError, match="eager=yes is not allowed: give true or false"):
        catalog.parse("sixth:eager=yes")


def test_lists_share_the_comma_with_options() -> None:
    given = "first_block:threshold=0.1,fastcache:alpha=0.01,rtol=0.2,every_n, every_n:n=3,warmup=2"
    assert catalog.parse_list(given) == [
        tenuto.FirstBlock(threshold=0.1),
        tenuto.FastCache(alpha=0.01, rtol=0.2),
        tenuto.EveryN(),
        tenuto.EveryN(n=3, warmup=2),
    ]
    assert catalog.parse_list("every_n,n=3") == [tenuto.EveryN(n=3)]


def test_a_method_around_another_follows_it_after_a_plus() -> None:
    inner = tenuto.FirstBlock(threshold=0.2, warmup=3)
    policy = catalog.parse("first_block:threshold=0.2,warmup=3 + adacorrection:gain=0.5,tokens=0.25")
    assert policy == AdaCorrection(inner=inner, gain=0.5, tokens=0.25)
    assert (policy.warmup, policy.profiled) == (3, inner)
    assert catalog.text(policy) == "first_block:threshold=0.2,warmup=3+adacorrection:gain=0.5,tokens=0.25"
    assert catalog.parse(catalog.text(policy)) == policy
    plain = AdaCorrection(inner=tenuto.EveryN())
    assert catalog.text(plain) == "every_n+adacorrection" and catalog.parse("every_n+adacorrection") == plain
    assert AdaCorrection(inner=tenuto.FastCache(rtol=0.3)).profiled == tenuto.FastCache(rtol=0.3)
    info = catalog.method("adacorrection")
    assert info.wraps and not catalog.method("every_n").wraps
    assert "inner" not in info.options() and set(info.options()) >= {"gain", "tokens", "published"}


def test_lists_of_methods_around_others() -> None:
    given = "every_n+adacorrection,tokens=0.25,gain=0.5,every_n,n=3,fastcache:rtol=0.2,alpha=0.1+adacorrection"
    assert catalog.parse_list(given) == [
        AdaCorrection(inner=tenuto.EveryN(), tokens=0.25, gain=0.5),
        tenuto.EveryN(n=3),
        AdaCorrection(inner=tenuto.FastCache(rtol=0.2, alpha=0.1)),
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [("n=3,every_n", "before any policy"), ("every_n,every_n:n=2", "listed twice"), ("every_n,", "Unknown policy ''")],
)
def test_lists_that_are_wrong(given: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        catalog.parse_list(given)


def test_methods_of_the_kv_family_combine() -> None:
    policy = catalog.parse("adakv:window=8 + kivi:bits=4,group=16")
    assert policy == Combined((tenuto.AdaKV(window=8), tenuto.Kivi(bits=4, group=16)))
    assert catalog.text(policy) == "adakv:window=8+kivi:bits=4,group=16"
    assert catalog.parse_list("snapkv,adakv:window=8,kernel=3+kivi,bits=4,knorm", "kv") == [
        tenuto.SnapKV(),
        Combined((tenuto.AdaKV(window=8, kernel=3), tenuto.Kivi(bits=4))),
        tenuto.Knorm(),
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("every_n+snapkv", "'snapkv' is a method of the family kv, not of diffusion. Allowed: adacorrection,"),
        ("snapkv+every_n", "'every_n' is a method of the family diffusion, not of kv. Allowed: adakv,"),
        ("round_robin+blocks", "blocks chooses nothing that the methods before it leave open"),
        ("full+concatenate", "concatenate cannot follow a plus"),
        ("semtoken+fixed", "fixed cannot follow a plus"),
        ("snapkv+knorm", "Knorm adds nothing"),
        ("snapkv+", "Unknown policy"),
        ("snapkv+kvi", "Unknown policy 'kvi'. Did you mean 'kivi' (kv)?"),
    ],
)
def test_combinations_that_are_wrong(given: str, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        catalog.parse(given)
    assert said in str(caught.value)


def test_a_family_can_be_asked_for() -> None:
    assert catalog.parse("knorm", "kv") == tenuto.Knorm()
    with pytest.raises(PolicyError, match="'knorm' is a method of the family kv, not of diffusion"):
        catalog.parse("knorm", "diffusion")
    with pytest.raises(PolicyError, match=r"Did you mean 'mka' \(attention\)\? Allowed: adakv"):
        catalog.parse("mkas", "kv")


def test_a_policy_from_outside_is_one_file_and_an_entry_point(plugin: str) -> None:
    assert catalog.method("sixth").cls.__module__ == plugin
    assert "sixth" in catalog.describe(catalog.method("sixth"))["name"]


def test_two_methods_of_one_name_are_refused(plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = tmp_path / "sixth-1.0.dist-info" / "entry_points.txt"
    points.write_text("[tenuto.diffusion]\nevery_n = sixth_policy:Sixth\n")
    with pytest.raises(PolicyError, match="'every_n': the entry point sixth_policy:Sixth calls itself 'sixth'"):
        catalog.methods()
    cls = importlib.import_module(plugin).Sixth
    monkeypatch.setattr(cls, "name", "every_n")
    with pytest.raises(PolicyError, match=r"Two methods are called 'every_n': .*every_n and .*sixth_policy:Sixth"):
        catalog.methods()
    monkeypatch.setattr(cls, "name", "sixth")
    monkeypatch.setattr(cls, "aliases", {"knorm": "sixth"}, raising=False)
    points.write_text("[tenuto.diffusion]\nsixth = sixth_policy:Sixth\n")
    with pytest.raises(PolicyError, match=r"Two methods are called 'knorm'"):
        catalog.methods()
    points.write_text("[tenuto.kv]\nsixth = sixth_policy:Sixth\n")
    with pytest.raises(PolicyError, match="'sixth': the entry point sixth_policy:Sixth is not a KVMethod class"):
        catalog.methods()


@pytest.mark.parametrize("value", ["absent_module:Sixth", "sixth_policy:Absent", "sixth_policy:Interval"])
def test_broken_entry_points_are_named(plugin: str, tmp_path: Path, value: str) -> None:
    (tmp_path / "sixth-1.0.dist-info" / "entry_points.txt").write_text(f"[tenuto.diffusion]\nsixth = {value}\n")
    with pytest.raises(PolicyError, match=f"'sixth': the entry point {value}"):
        catalog.methods()


def test_a_policy_that_is_not_installed_has_no_text(plugin: str, tmp_path: Path) -> None:
    policy = catalog.parse("sixth")
    (tmp_path / "sixth-1.0.dist-info" / "entry_points.txt").write_text("")
    with pytest.raises(PolicyError, match="Sixth is not in the catalog"):
        catalog.text(policy)


def test_citation() -> None:
    entry = catalog.bibtex(catalog.method("every_n"))
    assert entry.startswith("@misc{every_n2024,")
    assert "author = {Selvaraju and Ding and Chen" in entry
    assert entry.count("{") == entry.count("}")
