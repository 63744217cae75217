"""The paper's claims put to the test, one module a study: it asks the workshop for pieces and makes a table of them."""
