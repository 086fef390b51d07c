"""Which random key each draw of a training step comes from.

    step key    fold_in(key(seed), step)
    image       fold_in(step key, place)           augmentation
                fold_in(step key, MIX), place      Mixup and CutMix
                fold_in(step key, ATTACK), place   the adversary's start and target
                fold_in(step key, DROP_PATH), place   the blocks that an image skips

A place is an image's row in the global batch, so a draw does not depend on the number of devices.
Places are int32. A tag above 2^31 is therefore the place of no image, and the uses of a key share
no bits.
"""

import numpy as np

MIX = np.uint32(2**32 - 1)
ATTACK = np.uint32(2**32 - 2)
DROP_PATH = np.uint32(2**32 - 3)
CHOICE = np.uint32(2**32 - 1)  # folded into the key of MIX: Mixup or CutMix
