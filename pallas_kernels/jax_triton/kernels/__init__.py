"""The kernels in the Triton language. Importing a module of this folder needs the package triton.

Every variable of a kernel has one element per lane, and a lane is one thread of the GPU: `(N,)`
with N lanes in a program. Tuples of such variables are the lane's registers, one entry per pixel,
channel or component. `P` is the `Plan`.

Begin with `forward`. `places` says where lanes work, `taps` has the arithmetic of one tap, and
`memory` reads and writes.
"""
