"""Two speeds of tests; a tiny random-weight pipeline with real files, and a judge with random weights.

`make test-fast` runs the tests that are marked with nothing of ``WHOLE``. One of those that starts a process, trains
or loads a bundled model all the same fails there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tenuto.train.tokens import Tokens


WHOLE = ("browser", "bundled", "engine", "processes", "slow", "smollm2", "training")
PROCESSES = {"processes", "browser", "engine"}
FAULTS = Path(__file__).with_name("faults")
"""Uses crossed with methods, by the hundred: all of them slow."""
MODELS = (
    "bundled/dit_fashion/model_index.json",
    "bundled/wan_fashion/model_index.json",
    "models/smollm2/config.json",
)
TRAINING = 10
"""Steps of optimisers that are no training yet."""
done: dict[str, int] = {}
"""How often the test that runs did what needs a mark, by mark."""


def note(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook: what this process does."""
    if event in ("subprocess.Popen", "os.posix_spawn", "os.fork"):
        done["processes"] = done.get("processes", 0) + 1
    elif event == "open" and str(arguments[0]).endswith(MODELS):
        done["bundled"] = done.get("bundled", 0) + 1


def pytest_configure() -> None:
    """One thread, before torch is imported: tiny tensors are slower on several, and others use the other processors.

    Draws are the same in every run, so that a change is judged by itself; TENUTO_DRAWS=2000 draws others and more.
    """
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    settings.register_profile("same", derandomize="TENUTO_DRAWS" not in os.environ)
    settings.load_profile("same")


def watch() -> None:
    """From now on ``done`` counts."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def step(*_: object) -> None:
        done["training"] = done.get("training", 0) + 1

    register_optimizer_step_post_hook(step)
    sys.addaudithook(note)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr == "fast":
        watch()
    for item in items:
        if FAULTS in item.path.parents:
            item.add_marker("slow")
        if not any(item.get_closest_marker(name) for name in WHOLE):
            item.add_marker("fast")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    done.clear()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    told = yield
    if lacking := lacks({mark.name for mark in item.iter_markers()}, done):
        pytest.fail(f"it needs the mark {lacking!r}, for `make test-fast` to leave it out", pytrace=False)
    return told


def lacks(marks: set[str], done: dict[str, int]) -> str | None:
    """The mark that a fast test needs that did this; None if it is marked, or did nothing that needs one."""
    if "processes" in done and not marks & PROCESSES:
        return "processes"
    if "bundled" in done and not marks & {"bundled", "smollm2", "browser"}:
        return "bundled"
    return "training" if done.get("training", 0) > TRAINING and "training" not in marks else None


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors are slower on several threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DiTPipeline folder: 3 blocks of width 16, 64 tokens, 32x32 pictures in one channel, random weights."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            sample_size=8,
            patch_size=1,
            num_embeds_ada_norm=1000,
        )
        vae = AutoencoderKL(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 8),
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
            mid_block_add_attention=False,
        )
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    DiTPipeline(transformer, vae, scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WanPipeline folder on pixels: 3 blocks of width 16, 32 tokens, clips of 8 frames of 32x32, random weights."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

    from tenuto.zoo.clips import TOKEN_WIDTH

    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(
            patch_size=(1, 16, 16),
            num_attention_heads=1,
            attention_head_dim=16,
            in_channels=1,
            out_channels=1,
            text_dim=TOKEN_WIDTH,
            freq_dim=16,
            ffn_dim=32,
            num_layers=3,
            rope_max_seq_len=32,
        )
    folder = tmp_path_factory.mktemp("models") / "tiny-clips"
    WanPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama folder: 2 layers, 2 KV heads, random weights, a tokenizer whose tokens are bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.25,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("models") / "words"
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def judge_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a judge, random, with a standard Gaussian as its reference."""
    import torch
    from safetensors.torch import save_file

    from tenuto.bench.diffusion.scores import FEATURES, FashionClassifier

    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = FashionClassifier().state_dict()
    path = tmp_path_factory.mktemp("judge") / "classifier.safetensors"
    save_file({**weights, "feature_mean": torch.zeros(FEATURES), "feature_cov": torch.eye(FEATURES)}, path)
    return path


@pytest.fixture(scope="module")
def offline(judge_file: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[None]:
    """The random judge, an empty folder for profiles, one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tenuto.bench.diffusion.scores.JUDGE", judge_file)
        patch.setenv("TENUTO_HOME", str(tmp_path_factory.mktemp("home")))
        yield


PLUGIN = '''
"""Sixth: reuses every other step. https://example.org/sixth"""
from dataclasses import dataclass
from typing import ClassVar

from tenuto.diffusion.policies.every_n import Interval, StoredResidual, WholeStack
from tenuto.diffusion.policy import Composition, FeaturePolicy, Paper


@dataclass(frozen=True, slots=True, kw_only=True)
class Sixth(FeaturePolicy):
    """Every other step."""

    pace: float = 2.0
    eager: bool = False
    label: str = "a"
    warmup: int = 1

    name: ClassVar[str] = "sixth"
    paper: ClassVar[Paper] = Paper("The Sixth", "Doe, Roe", 2030, "https://example.org/sixth")

    def compose(self, profile):
        return Composition(WholeStack(), Interval(2, self.warmup), StoredResidual())
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed distribution, out of the tree, that adds the policy "sixth"; gives back its module's name."""
    (tmp_path / "sixth_policy.py").write_text(PLUGIN)
    info = tmp_path / "sixth-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sixth\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tenuto.diffusion]\nsixth = sixth_policy:Sixth\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "sixth_policy"


@pytest.fixture(scope="session")
def little_text() -> Tokens:
    """A little text as tokens, for training small models."""
    from pydoc_data.topics import topics

    from tenuto.texts.corpus import Document, split
    from tenuto.train.tokens import tokenise

    documents = [Document(name=f"manual/{name}", text=topics[name]) for name in sorted(topics)[:50]]
    return tokenise(split(documents), pieces=512)
