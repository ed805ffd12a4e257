"""Writes the .parquet files of this folder, and texts.json, what they hold. Needs pyarrow (26.0 wrote them), which the tests do not."""
import json
import pathlib
import random

import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = pathlib.Path(__file__).parent
WORDS = "the cat sat on \u00fcml\u00e4ut \u65e5\u672c a".split()
choose = random.Random(1)
plain = [None if i % 9 == 4 else " ".join(choose.choice(WORDS) for _ in range(choose.randrange(8))) for i in range(60)]
repeated = [None if i % 11 == 3 else choose.choice(["x", "yy", "", "zebra" * 9]) for i in range(60)]

FILES = {  # rows of a group, bytes of a page
    "snappy_v1": dict(compression="snappy", data_page_version="1.0", row_group_size=60),
    "zstd_v2": dict(compression="zstd", data_page_version="2.0", row_group_size=25, data_page_size=64),
    "plain_v1": dict(compression="NONE", data_page_version="1.0", row_group_size=17, use_dictionary=False, data_page_size=64),
    "required_v2": dict(compression="snappy", data_page_version="2.0", row_group_size=60, data_page_size=64),
}
for name, options in FILES.items():
    required = name.startswith("required")
    values = [[value or "" for value in column] if required else column for column in (plain, repeated)]
    schema = pa.schema([pa.field("id", pa.int64()), pa.field("text", pa.string(), nullable=not required),
                        pa.field("messages", pa.list_(pa.struct([("role", pa.string())]))),
                        pa.field("repeated", pa.string(), nullable=not required)])
    table = pa.table([list(range(60)), values[0], [[{"role": "user"}]] * 60, values[1]], schema=schema)
    pq.write_table(table, FOLDER / f"{name}.parquet", store_schema=False, write_statistics=False, write_batch_size=8, **options)
pq.write_table(pa.table({"text": ["a"]}), FOLDER / "gzip.parquet", compression="gzip", store_schema=False)
(FOLDER / "texts.json").write_text(json.dumps({"text": plain, "repeated": repeated}) + "\n")
