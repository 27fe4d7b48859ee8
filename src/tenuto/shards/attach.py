"""``shard``: a model whose KV cache lies on shards, in one process or on the ranks of a mesh.

    with shard(model, RoundRobin(page=16), mesh=init_device_mesh("cpu", (2,))) as run:   # under torchrun
        model.generate(**inputs, max_new_tokens=100)
    print(run.summary())

Without a selector every token is read and the output is the model's own, for every placement and number of ranks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import GenerationMixin

from tenuto.attention.attach import attention_of
from tenuto.calibration import Profile, fingerprint
from tenuto.discover import methods, parse
from tenuto.errors import AttachError, InputError
from tenuto.kv.attach import give_caches, take_over
from tenuto.kv.call import stepping
from tenuto.kv.interface import NAME
from tenuto.kv.models import find_layout
from tenuto.kv.offload.pool import Pool
from tenuto.shards.agreement import Weights, given, mark, model_facts, selector_fact
from tenuto.shards.cache import ShardedCache
from tenuto.shards.calibrate import NAME as AFFINITY
from tenuto.shards.exchange import Exchange, Local
from tenuto.shards.mesh import DataParallel, Replicated
from tenuto.shards.plan import Plan
from tenuto.shards.policy import Placement, Sharding, ShardMethod
from tenuto.shards.routes import Routes
from tenuto.shards.schedule import Scheduler
from tenuto.shards.selector import Selector
from tenuto.tiers.codec import PageCodec
from tenuto.tiers.host import HostTier
from tenuto.tiers.tier import Tier

__all__ = ["ShardedRun", "shard"]


class ShardedRun:
    """What ``shard`` yields.

    Attributes:
        plan: how caches are sharded; layout: what was found about the model; routes: what its routers say; weights:
            of its decoder.
    """

    def __init__(self, model: Any, plan: Plan) -> None:
        self.model, self.plan, self.layout = model, plan, find_layout(model)
        self.routes, self.weights = Routes(self.layout.blocks), Weights(self.layout.decoder)
        self._latest: ShardedCache | None = None
        self._here = threading.local()

    @property
    def last(self) -> ShardedCache | None:
        """The cache this thread used last, or if it has used none, any other did; None before the first call."""
        mine: ShardedCache | None = getattr(self._here, "last", None)
        return mine or self._latest

    @last.setter
    def last(self, cache: ShardedCache) -> None:
        self._here.last = self._latest = cache

    def cache(self) -> ShardedCache:
        """A new, empty cache, to be given as ``past_key_values``."""
        return ShardedCache(self.plan, self.layout, self.routes.before)

    def step(self, original: Callable[..., Any], named: dict[str, Any]) -> Any:
        """One call of the decoder's ``forward``."""
        self._refuse(named)
        cache, wanted = named.get("past_key_values"), named.get("use_cache")
        if cache is None and not (self.layout.config.use_cache if wanted is None else wanted):
            return original(**named)
        if cache is None:
            cache = named["past_key_values"] = self.cache()
        if not isinstance(cache, ShardedCache) or cache.layout.decoder is not self.layout.decoder:
            kind = "The cache of another model" if isinstance(cache, ShardedCache) else f"A {type(cache).__name__}"
            raise AttachError(f"{kind} was passed to a sharded model. Pass none, or one made by run.cache().")
        if cache.plan is not self.plan:
            raise AttachError("The cache was made in another `with shard(...)` block. Make a new one: run.cache().")
        ids = named.get("input_ids")
        tokens: Any = ids if ids is not None else named.get("inputs_embeds")
        with self.plan.exchange.turn:
            facts = self._facts(cache, named, tokens.device)
            self.routes.clear()
            cache.begin(tokens.shape[0], tokens.shape[1], named.get("attention_mask"), tokens.device, facts)
            self.last = cache
            try:
                with stepping(cache, []):
                    result = original(**named)
            finally:
                self.routes.clear()
            cache.finish()
        return result

    def _refuse(self, named: dict[str, Any]) -> None:
        """What is asked for and cannot be given."""
        config, mask = self.layout.config, named.get("attention_mask")
        if isinstance(mask, dict) or (mask is not None and mask.dim() != 2):
            raise AttachError("An attention mask of four dimensions was given. Give a mask [batch, tokens], or none.")
        if named.get("output_attentions", config.output_attentions):
            raise AttachError(
                "output_attentions=True was asked for of a sharded model, where attention weights are never whole. Ask "
                "outside the `with shard(...)` block, or leave it out."
            )
        if config._attn_implementation != NAME:
            raise AttachError(
                f"The attention implementation was set to {config._attn_implementation!r} while the model is sharded. "
                "Set it before the `with shard(...)` block."
            )

    def _facts(self, cache: ShardedCache, named: dict[str, Any], device: torch.device) -> dict[str, int]:
        """What must be the same on all ranks in this call; of the model where a text begins."""
        if self.plan.exchange.ranks == 1:
            return {}
        found = given(named, cache.history, device.type, self.model.training, self.plan.exchange.alike)
        starts = cache.get_seq_length() == 0
        facts = model_facts(self.model, self.layout.decoder, self.weights) if starts else {}
        return found | {"weights, configurations or adapters": mark(facts)}

    def summary(self) -> dict[str, Any]:
        """The last cache in numbers: bytes on this rank and of all shards, counted from tensors; what was sent;
        what decoding read, and what a lossy schedule deleted; ``dropped_mass``: the attention left out, mean over
        steps, layers, rows and heads, None where it was not measured; ``balance``: the largest load of a shard against
        the mean."""
        cache, traffic, exchange = self.last, self.plan.exchange.traffic, self.plan.exchange
        books = cache.books if cache else None
        dropped = books.dropped if books else []
        sparse = self.plan.selector is not None
        return {
            "placement": type(self.plan.placement).__name__,
            "selector": type(self.plan.selector).__name__ if self.plan.selector else "all",
            "ranks": exchange.ranks,
            "shards": self.plan.shards,
            "bytes_held": cache.bytes_held if cache else 0,
            "bytes_by_shard": cache.bytes_by_shard if cache else {},
            "bytes_tables": cache.bytes_tables if cache else 0,
            "bytes_full": cache.bytes_full if cache else 0,
            "bytes_sent": traffic.bytes,
            "collectives": traffic.collectives,
            "prefill_bytes_sent": traffic.prefill_bytes + traffic.moved_bytes,
            "tokens_read": books.tokens_read if books else 0,
            "tokens_held": books.tokens_held if books else 0,
            "pages_read": books.pages_read if books else 0,
            "pages_held": books.pages_held if books else 0,
            **self._below(),
            "codec": str(self.plan.codec),
            "pages_deleted": books.pages_deleted if books else 0,
            "tokens_deleted": books.tokens_deleted if books else 0,
            "dropped_mass": (sum(dropped) / len(dropped) if dropped else None) if sparse else 0.0,
            "balance": cache.balance if cache else 1.0,
        }

    def _below(self) -> dict[str, Any]:
        pool = self.plan.pool
        if self.last is None or pool is None:
            return {}
        shelves = [shelf for layer in self.last.engine for row in layer.shelves for shelf in row.values()]
        below = {page.name: page.nbytes for shelf in shelves for page in shelf.below.values()}
        books = pool.books
        return {"bytes_below": sum(below.values()), "pages_fetched": books.pages_fetched, "stall_s": books.stall_s}


def _exchange(mesh: DeviceMesh | None, layout: str) -> Exchange:
    if layout not in ("replicated", "data_parallel"):
        raise InputError(f"layout={layout!r} is not allowed: give 'replicated' or 'data_parallel'.")
    if mesh is None:
        return Local()
    return Replicated(mesh) if layout == "replicated" else DataParallel(mesh)


def _parts(policy: ShardMethod | Placement | str, profile: Profile | None) -> Sharding:
    """The parts of what was given."""
    method = parse(policy, methods(ShardMethod)) if isinstance(policy, str) else policy
    if isinstance(method, ShardMethod):
        return method.compose(profile)
    if isinstance(method, Placement):
        return Sharding(placement=method)
    raise InputError(f"A {type(policy).__name__} was given as policy. Give a method of the shards family, or its text.")


def _chosen(
    policy: ShardMethod | Placement | str, profile: Profile | None, selector: Selector | None
) -> tuple[Placement, Selector | None]:
    """Where tokens go, and which pages are read."""
    parts = _parts(policy, profile)
    return _placed(policy, parts), selector or parts.selector


def _placed(policy: object, chosen: Sharding) -> Placement:
    if chosen.placement is None:
        placements = ", ".join(name for name, cls in methods(ShardMethod).items() if issubclass(cls, Placement))
        raise InputError(
            f"{policy} says which pages are read, and not which shard holds a token. Write PLACEMENT+{policy}, for "
            f"example with one of {placements}."
        )
    return chosen.placement


def _check_own_cache(model: Any) -> None:
    if built_in := attention_of(model):
        raise AttachError(f"{type(model).__name__} was retrofitted with {built_in}, which has a cache of its own.")


def _count(exchange: Exchange, shards: int | None) -> int:
    count = exchange.ranks if shards is None else shards
    if count < 1 or count % exchange.ranks:
        raise InputError(f"shards={count} on {exchange.ranks} ranks: give a multiple of the ranks.")
    return count


def _codec(name: str, recent: int) -> PageCodec:
    codec = PageCodec.parse(name)
    if codec.zstd:
        raise InputError(f"codec={name!r}: pages in memory are read at every step. Give a codec without zstd.")
    if recent < 0:
        raise InputError(f"recent={recent}: give a number of tokens, 0 or more.")
    return codec


def _demotes(schedule: Scheduler | None, selector: Selector | None) -> bool:
    """Whether pages may go to a lower tier."""
    if schedule is None:
        return False
    if schedule.lossy and schedule.estimated and selector is None:
        raise InputError(
            f"{schedule} deletes what a selector gives little attention: give a selector as well (with keep=1.0 it "
            "reads all that is held), or a utility that goes by age."
        )
    return not schedule.lossy


def _attached(run: ShardedRun, layout: str) -> dict[str, str]:
    """What all ranks must attach with."""
    plan = run.plan
    return {
        **model_facts(run.model, run.layout.decoder, run.weights),
        "placement": repr(plan.placement),
        "selector": selector_fact(plan.selector),
        "schedule": repr(plan.schedule),
        "codec": f"{plan.codec} but of the last {plan.recent} tokens",
        "shards": str(plan.shards),
        "layout": layout,
        "measure": str(plan.measure),
    }


@contextmanager
def shard(
    model: Any,
    policy: ShardMethod | Placement | str,
    *,
    mesh: DeviceMesh | None = None,
    shards: int | None = None,
    selector: Selector | None = None,
    measure: bool = True,
    layout: Literal["replicated", "data_parallel"] = "replicated",
    schedule: Scheduler | None = None,
    tier: Tier | None = None,
    codec: str = "raw",
    recent: int = 64,
    profile: Profile | None = None,
) -> Iterator[ShardedRun]:
    """Run a transformers model on a sharded cache inside a ``with`` block.

    Args:
        model: a decoder-only transformers model, dense or a mixture of experts; on a mesh, the same on every rank.
        policy: a method of this family, its text, or a placement alone: which shard holds a token.
        mesh: one dimension of ranks, shards dealt out in turn; None: all shards are in this process.
        shards: a multiple of the ranks, by default one for each.
        selector: which pages a decoding step reads, in place of the method's; without any all are read, and the output
            is exact.
        measure: measure the attention mass that a selector leaves out, which reads the keys of all tokens.
        schedule: which pages leave memory for the ``tier`` (by default the memory of this process); with it, the mass
            that a selector leaves out is not measured. A lossy schedule deletes them, and changes the output.
        codec: how full pages are held: ``raw`` (exact), ``fp8``, ``int8``, ``int4`` or ``delta8``; summaries and open
            pages are not coded. recent: the newest tokens of a row; a page with one of them is not coded either.
        profile: for a method that needs one.
        layout: ``replicated``: all ranks are given the same rows; ``data_parallel``: rows of their own, as many each.

    Raises:
        PolicyError: no such method. CalibrationError: the method needs a profile.
        AttachError: no such model, attached already, or ranks that do not fit together.
        InputError: a number of shards, a layout, a codec or a schedule that is not allowed.
        StoreError: a rank does not answer (also from the model, while it runs).
    """
    exchange = _exchange(mesh, layout)
    count = _count(exchange, shards)
    placement, selector = _chosen(policy, profile, selector)
    coded = _codec(codec, recent)
    demotes = _demotes(schedule, selector)
    if tier is not None and not demotes:
        raise InputError("tier= says where demoted pages go: give a schedule= that is not lossy too, or neither.")
    pool = Pool(tier or HostTier(2**62), None) if demotes else None
    _check_own_cache(model)
    run = ShardedRun(model, Plan(placement, count, selector, measure, exchange, schedule, pool, coded, recent))
    if selector is not None and selector.learnt is not None:
        selector.learnt.check(AFFINITY, fingerprint(run.layout.decoder))
    if exchange.ranks > 1:
        exchange.agree(_attached(run, layout))
    with ExitStack() as stack:
        take_over(stack, run)
        if run.plan.routed:
            run.routes.listen(stack)
        if isinstance(model, GenerationMixin):
            give_caches(stack, run)
        yield run
