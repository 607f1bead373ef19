#include "tests/tools/pressing.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

int n_pressing(void)
{
    int n = 0;
    for (int i = 0; kv_policy_list[i] != NULL; i++)
        n += !kv_policy_list[i]->keeps_all;
    assert_true(n > 0);
    return n;
}

const struct kv_policy *pressing(int i)
{
    int at = 0;
    for (int k = i % n_pressing(); kv_policy_list[at]->keeps_all || k-- > 0;)
        at++;
    return kv_policy_list[at];
}
