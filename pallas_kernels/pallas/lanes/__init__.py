"""What the lanes of a kernel do: they read and write memory, and compute in registers.

`vectors` has the types of a lane's variables. `memory` defines how arrays are addressed, and
`operands`, `channels`, `priors` and `prior_columns` read and write what a kernel takes and returns.
`arithmetic` and `ptx` are one set of operations in jnp and in PTX, and `logits` is written in them.
"""
