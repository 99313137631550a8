"""Native code with a NumPy reference beside each function.

The tests hold every native function against its reference. The native module is a normal part of the
package: an installation without it is broken, and says so.
"""
