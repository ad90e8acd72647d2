//! Lets the return programs read `ip_summed` of a socket buffer, which decides how its checksum is updated.
//!
//! No context shows the field, but the kernel function `bpf_cast_to_kern_ctx` (Linux 6.2) gives a program the buffer
//! itself, and its verifier makes the call a move between registers. aya loads no kernel functions, and the field's
//! place differs between kernels: so the instructions are written into the object before aya reads it.

use lb_common::summed::{INSTRUCTION, PLACE};

use super::kernel_types::{Field, KernelTypes, VMLINUX};

/// What the instructions need to know of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Summed {
    /// Type id of `bpf_cast_to_kern_ctx`.
    function: u32,
    /// Byte of `struct sk_buff`.
    byte: i16,
    /// Lowest of the two bits in it.
    bit: u8,
}

impl Summed {
    /// Of the running kernel. `None` where it has no such function, or does not say: the programs then ask the kernel
    /// to update checksums, which costs a reply some 20 ns.
    pub fn of_kernel() -> Option<Self> {
        // The interpreter calls no kernel functions.
        if std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").is_ok_and(|mode| mode.trim() == "0") {
            return None;
        }
        Self::of_types(&KernelTypes::parse(&std::fs::read(VMLINUX).ok()?)?)
    }

    fn of_types(types: &KernelTypes<'_>) -> Option<Self> {
        let Field { offset, size } = types.field("sk_buff", "ip_summed")?;
        let (byte, bit) = (i16::try_from(offset / 8).ok()?, (offset % 8) as u8);
        let in_one_byte = size == 2 && bit <= 6;
        in_one_byte.then_some(Self { function: types.function("bpf_cast_to_kern_ctx")?, byte, bit })
    }

    /// `call bpf_cast_to_kern_ctx`, `r0 = *(u8 *)(r0 + byte)`, `r0 >>= bit`, `r0 &= 3`.
    fn instructions(self) -> [u8; PLACE.len()] {
        // `BPF_PSEUDO_KFUNC_CALL` as the source register.
        let call = instruction(0x85, 2 << 4, 0, self.function);
        let load = instruction(0x71, 0, self.byte, 0);
        let shift = instruction(0x77, 0, 0, self.bit.into());
        let mask = instruction(0x57, 0, 0, 3);
        let mut place = [0; PLACE.len()];
        for (to, from) in place.chunks_exact_mut(INSTRUCTION).zip([call, load, shift, mask]) {
            to.copy_from_slice(&from);
        }
        place
    }

    /// Fills every place of an object; returns how many there were. Instructions lie at multiples of their size.
    pub fn fill(self, object: &mut [u8]) -> usize {
        let (mut at, mut filled) = (0, 0);
        while let Some(place) = object.get_mut(at..at + PLACE.len()) {
            if *place == PLACE {
                place.copy_from_slice(&self.instructions());
                filled += 1;
            }
            at += INSTRUCTION;
        }
        filled
    }
}

const fn instruction(code: u8, registers: u8, offset: i16, immediate: u32) -> [u8; INSTRUCTION] {
    let ([a, b], [c, d, e, f]) = (offset.to_le_bytes(), immediate.to_le_bytes());
    [code, registers, a, b, c, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_filled_and_nothing_else() {
        let other = [0xb7, 0, 0, 0, 1, 0, 0, 0];
        let mut object = [&other[..], &PLACE, &other, &PLACE, &PLACE[..24]].concat();
        let summed = Summed { function: 0x1_f83c, byte: 128, bit: 5 };
        assert_eq!(summed.fill(&mut object), 2);
        let filled = [
            [0x85, 0x20, 0, 0, 0x3c, 0xf8, 1, 0],
            [0x71, 0, 128, 0, 0, 0, 0, 0],
            [0x77, 0, 0, 0, 5, 0, 0, 0],
            [0x57, 0, 0, 0, 3, 0, 0, 0],
        ]
        .concat();
        assert_eq!(object, [&other[..], &filled, &other, &filled, &PLACE[..24]].concat());
        assert_eq!(summed.fill(&mut object), 0);
    }

    #[test]
    fn a_kernel_without_the_function_is_left_alone() {
        let bytes = crate::dataplane::kernel_types::tests::types();
        assert_eq!(Summed::of_types(&KernelTypes::parse(&bytes).unwrap()), None);
    }
}
