"""Pairs of weights: at 2 bits two columns share an entry of a codebook, for the bytes of zero points in halves.

A pair are columns c and c + 4 of the same eight (c % 8 < 4), as kernels read them side by side. Their two codes make
the number of an entry, e = q[c] + 4 q[c + 4], one of 16. A matrix has four books of entries and each group, where other
grids have a zero point, the number of the one that fits it best:

    w[c], w[c + 4] = scale · book[number of the group][e]        entries: two whole numbers from -127 to 127

Two weights that are rounded together lie nearer to their values than each by itself: levels need not be all
combinations of four and four, but stand where pairs of weights are. Products add whole numbers, as with other grids.

Sources: GPTVQ (van Baalen et al., arXiv 2402.15319) and AQLM (Egiazarian et al., arXiv 2401.06118) for codebooks of
neighbouring weights; theirs differ in size and in what is learned when. Torch is imported where it is used: a process
that only runs a packed model does without.
"""

LEVELS = "pairs"  # the name of this kind beside those of `levels.LEVELS`
BITS, BOOKS, ENTRIES, APART, EIGHT = 2, 4, 16, 4, 8
MOST = 127  # the largest number of an entry, as 8 bits have it
SHAPE = (BOOKS, ENTRIES, 2)


def check(bits: int, group_size: int, columns: int, name: str = "the matrix") -> None:
    """Raise ValueError for grids that have no pairs: other than 2 bits, or groups that cut through eight columns."""
    size = columns if group_size == -1 else group_size
    if bits != BITS or size % EIGHT:
        raise ValueError(
            f"levels={LEVELS!r} with bits={bits} and groups of {size} in {name}; pairs have {BITS} bits and groups of "
            f"a multiple of {EIGHT} columns; change them, or take levels='half'."
        )


def check_book(codebook, name: str = "the matrix") -> None:
    """Raise ValueError for a codebook of another type or shape than int8 `SHAPE`."""
    found = "missing" if codebook is None else f"{str(codebook.dtype).removeprefix('torch.')} {list(codebook.shape)}"
    if found != f"int8 {list(SHAPE)}":
        raise ValueError(f"the codebook of pairs of {name} is {found}; int8 {list(SHAPE)} is needed; get a whole copy.")


def together(columns):
    """[..., columns] as pairs: two tensors [..., columns / 2], the first and the second of each."""
    eights = columns.unflatten(-1, (-1, 2, APART))
    return eights[..., 0, :].flatten(-2), eights[..., 1, :].flatten(-2)


def apart(first, second):
    """The reverse of `together`: [..., columns] of two tensors [..., columns / 2]."""
    import torch  # saved models run without torch

    halves = [part.unflatten(-1, (-1, APART)) for part in (first, second)]
    return torch.stack(halves, -2).flatten(-3)


def entries(codes):
    """Numbers of entries, uint8 [rows, columns / 2], of codes [rows, columns]."""
    first, second = together(codes)
    return first + (second << BITS)


def codes(entries):
    """The codes, uint8 [rows, columns], that stand for entries [rows, columns / 2]."""
    return apart(entries & 3, entries >> BITS)


def levels(codes, book, codebook, dtype):
    """The unscaled values [rows, groups, columns of a group] of codes [rows, columns], in `dtype`.

    book: the number of each group's book, [rows, groups]. codebook: [books, entries, 2].
    """
    numbers = entries(codes).long().view(*book.shape, -1) + ENTRIES * book.long()[..., None]
    values = codebook.to(dtype).flatten(0, 1)[numbers]
    return apart(values[..., 0], values[..., 1])
