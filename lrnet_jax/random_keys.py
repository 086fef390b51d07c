"""Which random key each draw of a training step comes from.

    step key    fold_in(key(seed), step)
    image       fold_in(step key, place)           augmentation
                fold_in(step key, MIX), place      Mixup and CutMix
                fold_in(step key, ATTACK), place   the adversary's start and target
                fold_in(step key, DROP_PATH), place   the blocks that an image skips
                fold_in(step key, RAND_AUGMENT), place   operations and their signs
                fold_in(step key, ERASE), place   the box that is erased

A place is an image's row in the global batch, so a draw does not depend on the number of devices.
Places are int32. A tag above 2^31 is therefore the place of no image, and the uses of a key share
no bits.
"""

import numpy as np

MIX = np.uint32(2**32 - 1)
ATTACK = np.uint32(2**32 - 2)
DROP_PATH = np.uint32(2**32 - 3)
RAND_AUGMENT = np.uint32(2**32 - 4)
ERASE = np.uint32(2**32 - 5)
CHOICE = np.uint32(2**32 - 1)  # folded into the key of MIX: Mixup or CutMix
