// Storage for a variable that two libraries both call FLAGS_minloglevel: sentencepiece's is an
// object of 32 bytes, libc10's an int. Loaded together, the linker gives both the first one's
// place, libc10's, and sentencepiece writes over what stands behind it: libc10's
// FLAGS_caffe2_use_fatal_for_enforce becomes true, and memory that runs out on the CPU ends the
// process instead of throwing. A definition in the program comes before both and has room for
// either. What libc10 then reads as its log level is meaningless, as it was before.
alignas(16) char FLAGS_minloglevel[64];  // NOLINT: their name
