"""Whether hostile files get the answer they should: seeded files of many kinds through every command that takes files.

python -m tools.hostile                        a table of all
python -m tools.hostile --only bomb            those kinds and doors whose names hold the word
python -m tools.hostile --keep FOLDER          the files of those that did not hold

A kind of file is a record (`Kind`), as is a command that takes such an input (`Door`); each file goes through every
door that takes its input, in this process. It has to end with the kind's exit code and one sentence, write nothing,
leave what was there as it was, and cost no more than was promised (`judge`).
"""
