"""A worker that is killed in the middle of a shard: once, or always in shard 2."""

import os
from pathlib import Path

from tlkit import worker
from tlkit.embedding import shard as sharding

embed_shard = sharding.embed_shard


def dying(job, shard, batches, tick):
    flag = Path(os.environ["DIE"])
    if shard == 2 and not flag.exists():
        if flag.name != "always":
            flag.touch()
        os._exit(9)
    return embed_shard(job, shard, batches, tick)


sharding.embed_shard = dying
if __name__ == "__main__":
    worker.main()
