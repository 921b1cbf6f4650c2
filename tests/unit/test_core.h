/* What every core test includes: cmocka wants its headers in this order. */
#ifndef NIBBLE_TESTS_UNIT_TEST_CORE_H
#define NIBBLE_TESTS_UNIT_TEST_CORE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#endif
