"""Operations in C++ for the CPU: the sources are in csrc/, the module that they make is `_cpu`."""
