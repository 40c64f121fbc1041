//! The `diffae` program from outside: what it prints, writes and returns.
