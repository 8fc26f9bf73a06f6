"""Spells every Redis key of the project, and a user's partition.

A key is `<prefix>:{<tag>}:<rest>`. The braces are a Redis Cluster hash tag, so that everything one partition writes
atomically lies in one slot. A user's partition is Kafka's own default, murmur2(user_id) mod N.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

ITEMS_TAG = "items"
CONTEXT_TAG = "context"
RULES_TAG = "rules"
LOCATION_SEPARATOR = "\x1f"  # between location, or kind, and item in a field of counts; ids never hold it


def partition_tag(partition: int) -> str:
    """Hash tag of a user partition, e.g. `p17`."""
    return f"p{partition}"


def attribution_tag(partition: int) -> str:
    """Hash tag of what users of a partition did with the lists they were shown, e.g. `a17`."""
    return f"a{partition}"


def showings_tag(partition: int) -> str:
    """Hash tag of what a partition of shown lists adds up to, e.g. `x17`."""
    return f"x{partition}"


@dataclass(frozen=True, slots=True)
class Keys:
    """Builds the keys of one deployment (or one replay) below `prefix`.

    A *tag* names a unit of atomic writing: `p<partition>`, `x<partition>`, `a<partition>`, `items`, `context` or
    `rules`.
    """

    prefix: str = "perseid"

    def cluster(self) -> str:
        """Hash of facts about the deployment: partition count, kinds, serving model, a timeline's clock ("": ended)."""
        return f"{self.prefix}:cluster"

    def model(self, version: str) -> str:
        """Hash of what an API process needs to serve a model version (JSON and context weights)."""
        return f"{self.prefix}:model:{version}"

    def wanted(self) -> str:
        """Hash user → tag of users who asked for a list and had no vectors of the served model."""
        return f"{self.prefix}:wanted"

    def roles(self) -> str:
        """Hash role id → JSON heartbeat of every running process."""
        return f"{self.prefix}:roles"

    def owner(self, tag: str) -> str:
        """Hash with the claim token, generation, positions and log identities of one tag."""
        return f"{self.prefix}:{{{tag}}}:owner"

    def user(self, tag: str, user_id: str) -> str:
        """Hash of one user: state, profile and one field of vectors per model version."""
        return f"{self.prefix}:{{{tag}}}:u:{user_id}"

    def users(self, tag: str) -> str:
        """Sorted set user → time of the user's newest event, for idle removal, counting and digests."""
        return f"{self.prefix}:{{{tag}}}:users"

    def waiting(self, tag: str) -> str:
        """Set of users whose window holds an item that had no vector when they were encoded."""
        return f"{self.prefix}:{{{tag}}}:waiting"

    def popularity(self, tag: str, bucket: int) -> str:
        """Hash `location \\x1f item` → weight of one time bucket of one partition."""
        return f"{self.prefix}:{{{tag}}}:pop:{bucket}"

    def kinds(self, tag: str, bucket: int) -> str:
        """Hash `code of a kind \\x1f item` → users' first events of one time bucket of one partition."""
        return f"{self.prefix}:{{{tag}}}:kinds:{bucket}"

    def popularity_buckets(self, tag: str) -> str:
        """Hash bucket → number of increments, so that a reader re-reads only what changed."""
        return f"{self.prefix}:{{{tag}}}:pops"

    def pairs(self, tag: str, bucket: int) -> str:
        """Hash item → what was bought together with it (`PairRow`), of one time bucket of one partition."""
        return f"{self.prefix}:{{{tag}}}:pairs:{bucket}"

    def pair_buckets(self, tag: str) -> str:
        """Hash bucket → number of purchases that were counted in pairs."""
        return f"{self.prefix}:{{{tag}}}:paired"

    def showings(self, tag: str, bucket: int) -> str:
        """Hash item → how far it was seen on lists of one time bucket of one partition, in thousandths."""
        return f"{self.prefix}:{{{tag}}}:shown:{bucket}"

    def showing_buckets(self, tag: str) -> str:
        """Hash bucket → number of lists, so that a reader re-reads only what changed."""
        return f"{self.prefix}:{{{tag}}}:shows"

    def shown_lists(self, tag: str) -> str:
        """Hash of the latest lists that were counted: hash of the recommendation id → its number."""
        return f"{self.prefix}:{{{tag}}}:lists"

    def join(self, tag: str, user_id: str) -> str:
        """Hash of one user's latest lists and actions, a field each (`streams.attribution.stored`)."""
        return f"{self.prefix}:{{{tag}}}:j:{user_id}"

    def joins(self, tag: str) -> str:
        """Sorted set user → time of what was remembered of the user last."""
        return f"{self.prefix}:{{{tag}}}:joins"

    def results(self, tag: str, day: int) -> str:
        """Hash `encode_field` → count of one day since 1970."""
        return f"{self.prefix}:{{{tag}}}:results:{day}"

    def result_days(self, tag: str) -> str:
        """Hash day → number of increments, so that a reader re-reads only what changed."""
        return f"{self.prefix}:{{{tag}}}:days"

    def item(self, item_id: str) -> str:
        """Hash of one item: catalogue record, text vector, tags, and one retrieval vector per model version."""
        return f"{self.prefix}:{{{ITEMS_TAG}}}:i:{item_id}"

    def item_index(self) -> str:
        """Sorted set item → item-log position of its last change."""
        return f"{self.prefix}:{{{ITEMS_TAG}}}:index"

    def item_log(self) -> str:
        """Stream of item changes; entry id `<position>-0`."""
        return f"{self.prefix}:{{{ITEMS_TAG}}}:log"

    def contexts(self) -> str:
        """Hash location → context record (JSON)."""
        return f"{self.prefix}:{{{CONTEXT_TAG}}}:records"

    def scenario_rules(self) -> str:
        """Hash scenario → rule of its lists (JSON, with `version`)."""
        return f"{self.prefix}:{{{RULES_TAG}}}:records"


@lru_cache(maxsize=65536)
def partition_of(user_id: str, partitions: int) -> int:
    """The home partition of a user: Kafka's default partitioner for a keyed record.

    >>> partition_of("21", 1000) == (murmur2(b"21") & 0x7FFFFFFF) % 1000
    True
    """
    return (murmur2(user_id.encode()) & 0x7FFFFFFF) % partitions


def murmur2(data: bytes) -> int:
    """32-bit MurmurHash2 with the seed of Kafka's Java client (org.apache.kafka.common.utils.Utils.murmur2)."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    length = len(data)
    h = (0x9747B28C ^ length) & mask
    for i in range(0, length - length % 4, 4):
        k = int.from_bytes(data[i : i + 4], "little")
        k = (k * m) & mask
        k ^= k >> 24
        h = ((h * m) & mask) ^ ((k * m) & mask)
    tail = data[length - length % 4 :]
    if tail:
        h ^= int.from_bytes(tail, "little")
        h = (h * m) & mask
    h ^= h >> 13
    h = (h * m) & mask
    return h ^ (h >> 15)
