"""The operations that a decoder needs, behind one interface: a plain torch reference, and faster ones.

`interface.Kernels` says what each operation does; `registry.select_kernels` chooses among them and says why.
"""
